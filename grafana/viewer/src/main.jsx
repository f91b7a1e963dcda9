// The page: a list of the dashboards, and each of them under /d/<uid>.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { Router } from 'react-router-dom';
import { ThemeContext } from '@grafana/data';
import { LocationServiceProvider, config, locationService } from '@grafana/runtime';
import { UrlSyncContextProvider, VizPanel, sceneGraph } from '@grafana/scenes';
import { GlobalStyles, LinkButton, PortalContainer, RadioButtonGroup } from '@grafana/ui';

import { setUp } from './runtime.js';
import { sceneOf } from './scene.js';

const parameters = new URLSearchParams(location.search);
const theme = parameters.get('theme') === 'light' ? 'light' : 'dark';

/** A path of this page in this theme. */
const themed = (path, name = theme) => {
  const url = new URL(path, location.origin);
  url.searchParams.set('theme', name);
  return url.pathname + url.search;
};

function Header({ dashboards, current }) {
  return (
    <div style={{ display: 'flex', gap: 8, alignItems: 'center', marginBottom: 16, flexWrap: 'wrap' }}>
      <h3 style={{ margin: 0, marginRight: 'auto' }}>{current.title}</h3>
      {dashboards.map(({ uid, title }) => (
        <LinkButton
          key={uid}
          href={themed(`/d/${uid}`)}
          size="sm"
          fill="outline"
          variant={uid === current.uid ? 'primary' : 'secondary'}
        >
          {title.replace(/^Taffrail \/ /, '')}
        </LinkButton>
      ))}
      <RadioButtonGroup
        size="sm"
        value={theme}
        options={['dark', 'light'].map((name) => ({ label: name, value: name }))}
        onChange={(name) => location.assign(themed(location.href, name))}
      />
    </div>
  );
}

function Page({ dashboards, current, scene }) {
  return (
    <ThemeContext.Provider value={config.theme2}>
      <GlobalStyles />
      <LocationServiceProvider service={locationService}>
        <Router navigator={locationService.getHistory()} location={locationService.getLocation()}>
          <div style={{ padding: 16, background: config.theme2.colors.background.canvas, minHeight: '100vh' }}>
            <Header dashboards={dashboards} current={current} />
            <UrlSyncContextProvider scene={scene}>
              <scene.Component model={scene} />
            </UrlSyncContextProvider>
          </div>
          <PortalContainer />
        </Router>
      </LocationServiceProvider>
    </ThemeContext.Provider>
  );
}

/** What became of each panel, for tests and pictures: its state, its errors, what was drawn. */
function panels(scene) {
  return sceneGraph.findAllObjects(scene, (object) => object instanceof VizPanel).map((panel) => {
    const { data } = sceneGraph.getData(panel).state;
    const element = document.querySelector(`[data-viz-panel-key="${panel.state.key}"]`);
    const drawn = element?.querySelector('[data-drawn]');
    const errors = (data?.errors ?? []).map(({ message }) => message);
    if (element?.querySelector('[data-testid="data-testid Alert error"]')) errors.push(element.innerText);
    if (drawn?.dataset.drawn === 'data' && !drawn.querySelector('canvas, svg, [role="table"], span, p')) {
      errors.push('drew nothing');
    }
    return {
      title: panel.state.title,
      type: panel.state.pluginId,
      state: data?.state ?? 'NotStarted',
      errors,
      drawn: drawn?.dataset.drawn,
      text: element?.innerText,
    };
  });
}

async function main() {
  const [dashboards, settings] = await Promise.all(
    ['/dashboards', '/settings'].map((path) => fetch(path).then((answer) => answer.json())),
  );
  const [, uid] = /^\/d\/([\w-]+)/.exec(location.pathname) ?? [];
  const current = dashboards.find((dashboard) => dashboard.uid === uid);
  if (!current) {
    location.replace(themed(`/d/${dashboards[0].uid}`));
    return;
  }
  document.title = current.title;
  await setUp(theme, settings);
  const scene = sceneOf(current);
  window.taffrail = { panels: () => panels(scene) };
  createRoot(document.getElementById('page')).render(<Page {...{ dashboards, current, scene }} />);
}

main().catch((error) => {
  document.getElementById('page').textContent = `The page cannot be shown: ${error.message}`;
  throw error;
});
