// What a Grafana server would set up in the page: the registries of field options and
// transformations, the runner of queries, and the way to the two data sources.
import {
  LoadingState,
  booleanOverrideProcessor,
  createTheme,
  dataLinksOverrideProcessor,
  displayNameOverrideProcessor,
  identityOverrideProcessor,
  locationUtil,
  numberOverrideProcessor,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  stringOverrideProcessor,
  thresholdsOverrideProcessor,
  unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { config, setDataSourceSrv, setPluginImportUtils, setRunRequest } from '@grafana/runtime';
import { sceneGraph, sceneUtils } from '@grafana/scenes';
import { catchError, map, of, startWith } from 'rxjs';

import { sources } from './sources.js';
import { plugins } from './panels.jsx';

/** Sets everything up for a page of that theme. */
export async function setUp(themeName, settings) {
  config.theme2 = createTheme({ colors: { mode: themeName } });
  config.bootData = { user: { locale: 'en-US', timezone: 'utc' }, settings: {}, navTree: [] };
  await initPluginTranslations('grafana-scenes');
  standardFieldConfigEditorRegistry.setInit(fieldOptions);
  standardTransformersRegistry.setInit(() => {
    // Some stand there under two names.
    const byId = new Map(Object.values(standardTransformers).map((each) => [each.id, each]));
    return [...byId.values()].map((transformation) => ({
      ...transformation,
      transformation: async () => transformation,
      editor: () => null,
    }));
  });
  locationUtil.initialize({
    config: { appSubUrl: '' },
    getVariablesUrlParams: () => ({}),
    getTimeRangeForUrl: () => ({ from: 'now-1h', to: 'now' }),
  });
  setRunRequest(runRequest);
  const known = sources(settings);
  setDataSourceSrv({
    get: async (ref, variables) => {
      const name = interpolate(typeof ref === 'string' ? ref : ref?.uid, variables);
      const found = known.find((source) => source.uid === name || source.type === ref?.type);
      if (!found) throw new Error(`no data source ${name ?? ref?.type}`);
      return found;
    },
    getInstanceSettings: (ref) => known.find((source) => source.uid === (ref?.uid ?? ref)),
    getList: ({ pluginId } = {}) =>
      known
        .filter((source) => !pluginId || source.type === pluginId)
        .map(({ uid, type, name, meta }) => ({ uid, type, name, meta })),
  });
  setPluginImportUtils({
    importPanelPlugin: async (id) => plugins[id] ?? Promise.reject(new Error(`no panel ${id}`)),
    getPanelPluginFromCache: (id) => plugins[id],
  });
  for (const [pluginId, plugin] of Object.entries(plugins)) {
    sceneUtils.registerRuntimePanelPlugin({ pluginId, plugin });
  }
}

/** The name of a data source, which may be a variable. */
function interpolate(name, variables) {
  const scene = variables?.__sceneObject?.value.valueOf();
  return scene && name ? sceneGraph.interpolate(scene, name) : name;
}

/** Asks a source and tells how it goes, in the form that panels read. */
function runRequest(source, request) {
  const start = { state: LoadingState.Loading, series: [], annotations: [], request, timeRange: request.range };
  return source.query(request).pipe(
    map(({ data }) => ({ ...start, state: LoadingState.Done, series: data })),
    catchError((error) => {
      const failed = { message: error.message, refId: request.targets[0]?.refId };
      return of({ ...start, state: LoadingState.Error, error: failed, errors: [failed] });
    }),
    startWith(start),
  );
}

/** The field options that every panel has; only what makes them hold, no editors. */
function fieldOptions() {
  const option = (id, process, extra) => ({
    id,
    path: id,
    name: id,
    description: '',
    process,
    override: () => null,
    editor: () => null,
    shouldApply: () => true,
    settings: {},
    ...extra,
  });
  return [
    option('unit', unitOverrideProcessor),
    option('min', numberOverrideProcessor),
    option('max', numberOverrideProcessor),
    option('fieldMinMax', booleanOverrideProcessor),
    option('decimals', numberOverrideProcessor),
    option('displayName', displayNameOverrideProcessor),
    option('noValue', stringOverrideProcessor),
    option('color', identityOverrideProcessor),
    option('thresholds', thresholdsOverrideProcessor),
    option('mappings', valueMappingsOverrideProcessor, { defaultValue: [] }),
    option('links', dataLinksOverrideProcessor),
    option('filterable', booleanOverrideProcessor),
    option('description', stringOverrideProcessor),
  ];
}
