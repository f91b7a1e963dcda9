// The panels' types, each a thin wrapper around a component of @grafana/ui. Grafana's own panels are
// under another licence and not on npm; what is drawn here is meant to look like them, no more.
import React, { useMemo } from 'react';
import {
  FieldColorModeId,
  FieldType,
  PanelPlugin,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  identityOverrideProcessor,
  renderTextPanelMarkdown,
} from '@grafana/data';
import {
  BarGauge,
  BigValue,
  DataLinksContextMenu,
  Table,
  TimeSeries,
  TooltipPlugin,
  VizLayout,
  VizLegend,
  VizRepeater,
  ZoomPlugin,
  useTheme2,
} from '@grafana/ui';

/** Whether there is anything to draw; if not, the panel's own words for that. */
function withData(Panel, hasData = (frames) => frames.some((frame) => frame.length)) {
  return function PanelWithData(props) {
    if (!hasData(props.data.series)) {
      const { noValue } = props.fieldConfig.defaults;
      return <Nothing text={noValue ?? 'No data'} />;
    }
    return (
      <div data-drawn="data">
        <Panel {...props} />
      </div>
    );
  };
}

function Nothing({ text }) {
  const theme = useTheme2();
  const style = {
    height: '100%',
    display: 'flex',
    alignItems: 'center',
    justifyContent: 'center',
    textAlign: 'center',
    color: theme.colors.text.secondary,
  };
  return (
    <div data-drawn="nothing" style={style}>
      {text}
    </div>
  );
}

/** The values that stat, gauge and pie show. */
function values({ data, fieldConfig, options, replaceVariables, timeZone }, theme, sparkline = false) {
  return getFieldDisplayValues({
    fieldConfig,
    reduceOptions: options.reduceOptions,
    replaceVariables,
    theme,
    data: data.series,
    sparkline,
    timeZone,
  });
}

/** What is drawn, under the links of its value if it has any. */
function linked(value, draw) {
  if (!value.hasLinks || !value.getLinks) return draw({});
  return (
    <DataLinksContextMenu links={value.getLinks} style={{ flexGrow: 1 }}>
      {({ openMenu, targetClassName }) => draw({ onClick: openMenu, className: targetClassName })}
    </DataLinksContextMenu>
  );
}

function Repeated({ all, draw, ...props }) {
  return (
    <VizRepeater
      {...props}
      source={props.data}
      getValues={() => all}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, alignmentFactors, count, orientation }) =>
        linked(value, (extra) => draw(value, { width, height, alignmentFactors, count, orientation, ...extra }))
      }
    />
  );
}

function Stat(props) {
  const theme = useTheme2();
  const { options } = props;
  return (
    <Repeated
      {...props}
      all={values(props, theme, options.graphMode !== 'none')}
      orientation={options.orientation}
      autoGrid
      itemSpacing={3}
      draw={(value, place) => (
        <BigValue
          {...place}
          theme={theme}
          value={value.display}
          sparkline={value.sparkline}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={options.textMode}
          disableWideLayout={!options.wideLayout}
        />
      )}
    />
  );
}

function Bars(props) {
  const theme = useTheme2();
  const { options } = props;
  return (
    <Repeated
      {...props}
      all={values(props, theme)}
      orientation={options.orientation}
      itemSpacing={options.displayMode === 'lcd' ? 2 : 8}
      minVizWidth={options.minVizWidth}
      minVizHeight={options.minVizHeight}
      maxVizHeight={options.maxVizHeight}
      draw={(value, place) => (
        <BarGauge
          {...place}
          theme={theme}
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          displayMode={options.displayMode}
          namePlacement={options.namePlacement}
          valueDisplayMode={options.valueMode}
          showUnfilled={options.showUnfilled}
        />
      )}
    />
  );
}

function Lines({ data, options, width, height, timeRange, timeZone, onChangeTimeRange, replaceVariables }) {
  const frames = useMemo(() => data.series.filter(isSeries), [data.series]);
  return (
    <TimeSeries
      frames={frames}
      structureRev={data.structureRev}
      timeRange={timeRange}
      timeZone={timeZone}
      width={width}
      height={height}
      legend={options.legend}
      options={options}
      replaceVariables={replaceVariables}
    >
      {(config, aligned) => (
        <>
          <ZoomPlugin config={config} onZoom={onChangeTimeRange} />
          <TooltipPlugin
            config={config}
            data={aligned}
            frames={frames}
            mode={options.tooltip.mode}
            sortOrder={options.tooltip.sort}
            timeZone={timeZone}
          />
        </>
      )}
    </TimeSeries>
  );
}

const isSeries = (frame) =>
  frame.length > 0 &&
  frame.fields.some(({ type }) => type === FieldType.time) &&
  frame.fields.some(({ type }) => type === FieldType.number);

function Rows({ data, options, fieldConfig, width, height, timeRange }) {
  const [frame] = data.series;
  return (
    <Table
      data={frame}
      width={width}
      height={height}
      noHeader={!options.showHeader}
      cellHeight={options.cellHeight}
      initialSortBy={options.sortBy}
      enablePagination={options.footer?.enablePagination}
      fieldConfig={fieldConfig}
      timeRange={timeRange}
      resizable
    />
  );
}

function Pie(props) {
  const theme = useTheme2();
  const { options, width, height } = props;
  const slices = values(props, theme).filter(({ display }) => display.numeric > 0);
  const total = slices.reduce((sum, { display }) => sum + display.numeric, 0);
  const share = ({ display }) => `${Math.round((100 * display.numeric) / total)}%`;
  const items = slices.map((slice) => ({
    label: slice.display.title,
    color: slice.display.color,
    yAxis: 1,
    getDisplayValues: () => [
      { ...slice.display, title: 'Value', text: `${slice.display.prefix ?? ''}${slice.display.text}${slice.display.suffix ?? ''}`, prefix: '', suffix: '' },
      { numeric: slice.display.numeric / total, text: share(slice), title: 'Percent' },
    ],
  }));
  const legend = options.legend.showLegend && (
    <VizLayout.Legend placement={options.legend.placement} maxWidth="60%">
      <VizLegend items={items} placement={options.legend.placement} displayMode={options.legend.displayMode} />
    </VizLayout.Legend>
  );
  return (
    <VizLayout width={width} height={height} legend={legend}>
      {(width, height) => (
        <Donut width={width} height={height} slices={slices} total={total} share={share} theme={theme} isDonut={options.pieType === 'donut'} />
      )}
    </VizLayout>
  );
}

function Donut({ width, height, slices, total, share, theme, isDonut }) {
  const outer = Math.max(0, Math.min(width, height) / 2 - 4);
  const inner = isDonut ? outer * 0.6 : 0;
  let turned = 0;
  const point = (turn, radius) =>
    `${radius * Math.sin(2 * Math.PI * turn)} ${-radius * Math.cos(2 * Math.PI * turn)}`;
  return (
    <svg width={width} height={height} viewBox={`${-width / 2} ${-height / 2} ${width} ${height}`}>
      {slices.map((slice) => {
        const part = slice.display.numeric / total;
        // A whole turn would begin where it ends, and so be none.
        const [from, to] = [turned, turned + Math.min(part, 0.9999)];
        turned += part;
        const wide = part > 0.5 ? 1 : 0;
        const outline = `M ${point(from, outer)} A ${outer} ${outer} 0 ${wide} 1 ${point(to, outer)} L ${point(to, inner)} A ${inner} ${inner} 0 ${wide} 0 ${point(from, inner)} Z`;
        const [x, y] = point((from + to) / 2, (outer + inner) / 2).split(' ');
        return (
          <g key={slice.display.title}>
            <path d={outline} fill={slice.display.color} stroke={theme.colors.background.primary} />
            {part > 0.06 && (
              <text x={x} y={y} textAnchor="middle" dominantBaseline="central" fontSize={11} fill={theme.colors.getContrastText(slice.display.color)}>
                {share(slice)}
              </text>
            )}
          </g>
        );
      })}
    </svg>
  );
}

function Text({ options, replaceVariables }) {
  const html = renderTextPanelMarkdown(replaceVariables(options.content ?? ''));
  return <div data-drawn="data" className="markdown-html" dangerouslySetInnerHTML={{ __html: html }} />;
}

/** A type whose own field options are let through as they are. */
function plugin(id, Panel, custom = [], color = FieldColorModeId.Thresholds) {
  const made = new PanelPlugin(Panel).useFieldConfig({
    standardOptions: { color: { defaultValue: { mode: color } } },
    useCustomConfig: (builder) => {
      for (const path of custom) {
        builder.addCustomEditor({
          id: path,
          path,
          name: path,
          editor: () => null,
          override: () => null,
          process: identityOverrideProcessor,
          shouldApply: () => true,
          settings: {},
        });
      }
    },
  });
  made.meta = { id, name: id, info: { logos: {} }, module: '', baseUrl: '', skipDataQuery: id === 'text' };
  return made;
}

const GRAPH = [
  'axisBorderShow', 'axisCenteredZero', 'axisColorMode', 'axisGridShow', 'axisLabel', 'axisPlacement', 'axisSoftMax',
  'axisSoftMin', 'axisWidth', 'barAlignment', 'barMaxWidth', 'barWidthFactor', 'drawStyle', 'fillBelowTo', 'fillOpacity',
  'gradientMode', 'hideFrom', 'insertNulls', 'lineColor', 'lineInterpolation', 'lineStyle', 'lineWidth', 'pointSize',
  'scaleDistribution', 'showPoints', 'spanNulls', 'stacking', 'thresholdsStyle', 'transform',
];
const TABLE = ['align', 'cellOptions', 'filterable', 'hidden', 'inspect', 'minWidth', 'width'];

export const plugins = {
  stat: plugin('stat', withData(Stat)),
  bargauge: plugin('bargauge', withData(Bars)),
  timeseries: plugin('timeseries', withData(Lines, (frames) => frames.some(isSeries)), GRAPH, FieldColorModeId.PaletteClassic),
  table: plugin('table', withData(Rows), TABLE),
  piechart: plugin('piechart', withData(Pie), ['hideFrom'], FieldColorModeId.PaletteClassic),
  text: plugin('text', Text),
};
