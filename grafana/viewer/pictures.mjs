// Draws every dashboard in headless Chromium, and tells what became of each panel.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import UPNG from 'upng-js';

const WIDTH = 1600;
const COLOURS = 64;
const DRAW_MILLIS = 60_000;
// Curves and bars are drawn a moment after their panel is there.
const PAINT_MILLIS = 1_000;
const PROGRAMS = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

export async function browser() {
  const executablePath = process.env.CHROMIUM ?? PROGRAMS.find(existsSync);
  if (!executablePath) throw new Error('chromium is missing: run scripts/test-setup.sh');
  return chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu', '--font-render-hinting=none'] });
}

/** In the page: whether every panel has what it asked for, and has drawn it, or failed. */
function areDrawn() {
  const panels = window.taffrail.panels();
  const isDrawn = ({ state, drawn, errors }) => errors.length || state === 'Error' || (state === 'Done' && drawn);
  return panels.length > 0 && panels.every(isDrawn);
}

/** Opens a dashboard, with the rows that are closed at first if `opened`, and waits until every panel has what it asked for; returns what became of each. */
export async function draw(tab, page, uid, { theme, from, opened = false }) {
  const parameters = new URLSearchParams({ theme, from, to: 'now', refresh: '' });
  await tab.goto(`${page}d/${uid}?${parameters}`);
  await tab.waitForFunction(() => window.taffrail, undefined, { timeout: DRAW_MILLIS });
  if (opened) await tab.evaluate(() => window.taffrail.open());
  const settled = () => tab.waitForFunction(areDrawn, undefined, { timeout: DRAW_MILLIS });
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
