// A dashboard's JSON as a scene. Only what our dashboards use is understood; anything else is an
// error, so that no panel is left out unseen.
import {
  CustomVariable,
  DataSourceVariable,
  EmbeddedScene,
  QueryVariable,
  SceneControlsSpacer,
  SceneDataTransformer,
  SceneGridItem,
  SceneGridLayout,
  SceneGridRow,
  SceneQueryRunner,
  SceneRefreshPicker,
  SceneTimePicker,
  SceneTimeRange,
  SceneVariableSet,
  TextBoxVariable,
  VariableValueSelectors,
  VizPanel,
  behaviors,
} from '@grafana/scenes';

export function sceneOf(dashboard) {
  return new EmbeddedScene({
    $timeRange: new SceneTimeRange({ ...dashboard.time, timeZone: dashboard.timezone || 'browser' }),
    $variables: new SceneVariableSet({ variables: dashboard.templating.list.map(variable) }),
    $behaviors: [new behaviors.CursorSync({ sync: dashboard.graphTooltip ?? 0 })],
    controls: [
      new VariableValueSelectors({}),
      new SceneControlsSpacer(),
      new SceneTimePicker({ isOnCanvas: true }),
      new SceneRefreshPicker({ refresh: dashboard.refresh ?? '', isOnCanvas: true }),
    ],
    body: new SceneGridLayout({ children: rows(dashboard.panels) }),
  });
}

function variable(json) {
  const common = { name: json.name, label: json.label, hide: json.hide, description: json.description };
  const choice = {
    ...common,
    isMulti: json.multi,
    includeAll: json.includeAll,
    defaultToAll: json.includeAll,
    allValue: json.allValue,
    value: json.current?.value ?? '',
    text: json.current?.text ?? '',
  };
  switch (json.type) {
    case 'datasource':
      return new DataSourceVariable({ ...common, pluginId: json.query, regex: json.regex });
    case 'query':
      return new QueryVariable({
        ...choice,
        datasource: json.datasource,
        query: json.query,
        refresh: json.refresh,
        sort: json.sort,
        regex: json.regex,
      });
    case 'custom':
      return new CustomVariable({ ...choice, query: json.query });
    case 'textbox':
      return new TextBoxVariable({ ...common, value: json.current?.value ?? json.query });
    default:
      throw new Error(`variable ${json.name} is of the unknown type ${json.type}`);
  }
}

/** Panels below a row belong to it until the next one. */
function rows(panels) {
  const children = [];
  let row;
  for (const json of panels) {
    if (json.type === 'row') {
      row = new SceneGridRow({
        title: json.title,
        isCollapsed: json.collapsed ?? false,
        y: json.gridPos.y,
        children: (json.panels ?? []).map(item),
      });
      children.push(row);
    } else if (row) {
      row.setState({ children: [...row.state.children, item(json)] });
    } else {
      children.push(item(json));
    }
  }
  return children;
}

function item(json) {
  const { x, y, w, h } = json.gridPos;
  return new SceneGridItem({ x, y, width: w, height: h, body: panel(json) });
}

function panel(json) {
  return new VizPanel({
    key: `panel-${json.id ?? json.title}`,
    title: json.title,
    description: json.description,
    pluginId: json.type,
    options: json.options ?? {},
    fieldConfig: json.fieldConfig ?? { defaults: {}, overrides: [] },
    displayMode: json.transparent ? 'transparent' : 'default',
    $data: json.targets && data(json),
  });
}

function data(json) {
  const queries = new SceneQueryRunner({
    datasource: json.datasource,
    queries: json.targets,
    maxDataPoints: json.maxDataPoints,
    minInterval: json.interval,
  });
  if (!json.transformations?.length) return queries;
  return new SceneDataTransformer({ $data: queries, transformations: json.transformations });
}
