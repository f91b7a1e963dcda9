// Draws every dashboard in headless Chromium, and tells what became of each panel.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import UPNG from 'upng-js';

const WIDTH = 1600;
const COLOURS = 128;
const DRAW_MILLIS = 60_000;
// Curves and bars are drawn a moment after their panel is there.
const PAINT_MILLIS = 1_000;
const PROGRAMS = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

export async function browser() {
  const executablePath = process.env.CHROMIUM ?? PROGRAMS.find(existsSync);
  if (!executablePath) throw new Error('chromium is missing: run scripts/test-setup.sh');
  return chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu', '--font-render-hinting=none'] });
}

/** Opens a dashboard and waits until every panel has what it asked for; returns what became of each. */
export async function draw(tab, page, uid, { theme, from }) {
  const parameters = new URLSearchParams({ theme, from, to: 'now', refresh: '' });
  await tab.goto(`${page}d/${uid}?${parameters}`);
  await tab.waitForFunction(() => window.taffrail, undefined, { timeout: DRAW_MILLIS });
  const settled = () =>
    tab.waitForFunction(
      () => window.taffrail.panels().every(({ state, drawn, errors }) => state === 'Error' || errors.length || (state === 'Done' && drawn)),
      undefined,
      { timeout: DRAW_MILLIS },
    );
  await settled();
  // As high as it is, so that nothing is left to scroll to, and every panel is drawn.
  const height = await tab.evaluate(() => document.getElementById('page').scrollHeight);
  await tab.setViewportSize({ width: WIDTH, height: Math.max(height, 600) });
  await settled();
  return tab.evaluate(() => window.taffrail.panels());
}

/** Pictures of all dashboards in both themes, as `<name>-<theme>.png`. */
export async function takePictures({ page, folder, from }) {
  mkdirSync(folder, { recursive: true });
  const dashboards = await (await fetch(`${page}dashboards`)).json();
  const chrome = await browser();
  try {
    for (const theme of ['dark', 'light']) {
      for (const { uid } of dashboards) {
        const tab = await chrome.newPage({ viewport: { width: WIDTH, height: 900 } });
        tab.on('pageerror', (error) => console.error(`${uid}: ${error.message}`));
        const panels = await draw(tab, page, uid, { theme, from });
        for (const { title, errors, drawn } of panels) {
          if (errors.length || drawn !== 'data') console.log(`${uid}: ${title}: ${errors.join('; ') || drawn}`);
        }
        const name = uid.replace('taffrail-', '');
        await tab.waitForTimeout(PAINT_MILLIS);
        writeFileSync(join(folder, `${name}-${theme}.png`), small(await tab.screenshot()));
        await tab.close();
      }
    }
  } finally {
    await chrome.close();
  }
}

/** The same picture with few colours, which is a third of the bytes. */
function small(png) {
  const { width, height, ...picture } = UPNG.decode(png);
  return Buffer.from(UPNG.encode([UPNG.toRGBA8({ width, height, ...picture })[0]], width, height, COLOURS));
}
