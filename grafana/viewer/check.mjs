// Draws every dashboard in headless Chromium and prints what became of each panel.
//
// node check.mjs --root <repository> --prometheus <url> --postgres <url> [--scrape-seconds <number>]
import { parseArgs } from 'node:util';

import { browser, draw } from './pictures.mjs';
import { serve } from './server.mjs';

const { values: options } = parseArgs({
  options: {
    root: { type: 'string' },
    prometheus: { type: 'string' },
    postgres: { type: 'string' },
    'scrape-seconds': { type: 'string', default: '1' },
  },
});

const server = await serve({
  prometheus: options.prometheus,
  postgres: options.postgres,
  dashboards: `${options.root}/grafana`,
  scrapeSeconds: Number(options['scrape-seconds']),
});
const dashboards = await (await fetch(`${server.url}dashboards`)).json();
const chrome = await browser();
const panels = [];

/** Draws those that nobody else has begun with. */
async function work() {
  const tab = await chrome.newPage({ viewport: { width: 1600, height: 900 } });
  for (let next = dashboards.shift(); next; next = dashboards.shift()) {
    const drawn = await draw(tab, server.url, next.uid, { theme: 'dark', from: 'now-5m' });
    const board = next.uid.replace('taffrail-', '');
    panels.push(...drawn.map(({ text, ...panel }) => ({ board, ...panel })));
  }
}

try {
  await Promise.all([work(), work()]);
} finally {
  await chrome.close();
  await server.close();
}
console.log(JSON.stringify(panels));
