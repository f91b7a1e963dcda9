// The two data sources of the dashboards, each behind the small server of this page: Prometheus by
// its HTTP API, Postgres by SQL. What comes back becomes data frames as Grafana's own sources make.
import { FieldType } from '@grafana/data';
import { RuntimeDataSource, sceneGraph } from '@grafana/scenes';
import { from } from 'rxjs';

import { format, rateInterval } from './formats.js';

export function sources(settings) {
  return [new Prometheus(settings), new Postgres()];
}

/** A text with its variables filled in, as they are where the request comes from. */
function fill(text, request, extra, quote) {
  const scene = request.scopedVars?.__sceneObject?.value.valueOf();
  const variables = { ...request.scopedVars, ...extra };
  return scene ? sceneGraph.interpolate(scene, text, variables, quote) : text;
}

async function read(response) {
  const body = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (body.error) throw new Error(body.error);
  return body;
}

const scoped = (value) => ({ value, text: value });

class Prometheus extends RuntimeDataSource {
  constructor({ scrapeSeconds }) {
    super('prometheus', 'prometheus');
    this.name = 'Prometheus';
    this.interval = `${scrapeSeconds}s`;
    this.scrapeSeconds = scrapeSeconds;
  }

  query(request) {
    const asked = request.targets.filter((target) => !target.hide && target.expr);
    const tables = asked.filter((target) => target.format === 'table').length;
    const answers = asked.map(async (target) => {
      const result = await this.ask(target, request);
      return target.format === 'table' ? [table(target, result, tables)] : series(target, result, request);
    });
    return from(Promise.all(answers).then((frames) => ({ data: frames.flat() })));
  }

  async ask(target, request) {
    const [start, end] = [request.range.from.valueOf() / 1000, request.range.to.valueOf() / 1000];
    const step = Math.max(request.intervalMs / 1000 || 1, (end - start) / 11000);
    const range = Math.max(1, Math.round(end - start));
    const expr = fill(
      target.expr,
      request,
      {
        __interval: scoped(format(step)),
        __interval_ms: scoped(step * 1000),
        __rate_interval: scoped(format(rateInterval(step, this.scrapeSeconds))),
        __range: scoped(`${range}s`),
        __range_s: scoped(range),
      },
      regex,
    );
    const parameters = new URLSearchParams({ query: expr });
    if (target.instant) parameters.set('time', end);
    else Object.entries({ start: start - (start % step), end, step }).forEach(([k, v]) => parameters.set(k, v));
    const path = target.instant ? 'query' : 'query_range';
    const { data } = await read(await fetch(`/prometheus/api/v1/${path}`, { method: 'POST', body: parameters }));
    const points = (row) => row.values ?? [row.value];
    const rows = data.resultType === 'scalar' ? [{ metric: {}, value: data.result }] : data.result;
    return rows.map((row) => ({
      labels: row.metric,
      times: points(row).map(([time]) => time * 1000),
      values: points(row).map(([, value]) => number(value)),
      step: step * 1000,
    }));
  }

  async metricFindQuery(query, options) {
    const text = fill(query.query ?? query, options, {}, regex);
    const [, metric, label] = /^label_values\((.+),\s*(\w+)\)$/.exec(text) ?? [];
    if (!metric) throw new Error(`not understood: ${text}`);
    const parameters = new URLSearchParams({ 'match[]': metric });
    const { data } = await read(await fetch(`/prometheus/api/v1/label/${label}/values?${parameters}`));
    return data.map((value) => ({ text: value }));
  }
}

/** A sample as a number; one that is none is a gap. */
function number(text) {
  const value = Number(text);
  if (text === '+Inf' || text === '-Inf') return text === '+Inf' ? Infinity : -Infinity;
  return Number.isNaN(value) ? null : value;
}

/** A value of a variable between quotes of a matcher. */
function regex(value) {
  const escape = (text) => String(text).replace(/[\\^$*+?.()|[\]{}]/g, '\\\\$&');
  return Array.isArray(value) ? `(${value.map(escape).join('|')})` : escape(value);
}

const field = (name, type, values, config = {}, labels = undefined) => ({ name, type, values, config, labels });

function series(target, result, request) {
  return result.map(({ labels, times, values, step }) => {
    const name = legend(target, labels);
    return {
      refId: target.refId,
      name,
      fields: [
        field('Time', FieldType.time, times, { interval: step }),
        field('Value', FieldType.number, values, { displayNameFromDS: name }, labels),
      ],
      length: times.length,
    };
  });
}

/** What a series is called. */
function legend({ legendFormat, expr }, labels) {
  if (legendFormat && legendFormat !== '__auto') {
    return legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
  }
  const { __name__: metric = '', ...rest } = labels;
  const pairs = Object.entries(rest).map(([label, value]) => `${label}="${value}"`);
  return pairs.length ? `${metric}{${pairs.join(', ')}}` : metric || expr;
}

/** All series in one table: a row for each point, a column for each label. */
function table(target, result, tables) {
  const names = [...new Set(result.flatMap(({ labels }) => Object.keys(labels)))].sort();
  const rows = result.flatMap(({ labels, times, values }) => times.map((time, i) => ({ labels, time, value: values[i] })));
  const column = (name) => field(name, FieldType.string, rows.map(({ labels }) => labels[name] ?? ''), { filterable: true });
  const value = tables > 1 ? `Value #${target.refId}` : 'Value';
  return {
    refId: target.refId,
    fields: [
      field('Time', FieldType.time, rows.map(({ time }) => time)),
      ...names.map(column),
      field(value, FieldType.number, rows.map((row) => row.value)),
    ],
    length: rows.length,
  };
}

class Postgres extends RuntimeDataSource {
  constructor() {
    super('grafana-postgresql-datasource', 'postgres');
    this.name = 'Postgres';
  }

  query(request) {
    const asked = request.targets.filter((target) => !target.hide && target.rawSql);
    const answers = asked.map(async (target) => {
      const { columns, rows } = await this.ask(target.rawSql, request);
      return target.format === 'table' ? [rowsTable(target, columns, rows)] : rowsSeries(target, columns, rows);
    });
    return from(Promise.all(answers).then((frames) => ({ data: frames.flat() })));
  }

  async ask(sql, request) {
    const body = {
      sql: fill(sql, request, {}, literal),
      from: request.range.from.toISOString(),
      to: request.range.to.toISOString(),
      intervalMs: request.intervalMs ?? 60000,
    };
    return read(await fetch('/postgres', { method: 'POST', body: JSON.stringify(body) }));
  }

  async metricFindQuery(query, options) {
    const { rows } = await this.ask(query.query ?? query, options);
    return rows.map(([value]) => ({ text: String(value) }));
  }
}

/** A value of a variable that the SQL itself puts nothing around. */
function literal(value) {
  const quote = (text) => `'${String(text).replaceAll("'", "''")}'`;
  return Array.isArray(value) ? value.map(quote).join(',') : value;
}

function rowsTable(target, columns, rows) {
  const fields = columns.map(({ name, type }, i) => field(name, type, rows.map((row) => row[i])));
  return { refId: target.refId, fields, length: rows.length };
}

/** Rows of a time, a name and a value, as a series for each name. */
function rowsSeries(target, columns, rows) {
  const at = (wanted) => columns.findIndex(wanted);
  const [time, metric] = [at(({ type }) => type === 'time'), at(({ type }) => type === 'string')];
  const values = columns.map((_, i) => i).filter((i) => columns[i].type === 'number');
  const names = [...new Set(rows.map((row) => (metric < 0 ? '' : row[metric])))];
  return names.flatMap((name) => {
    const own = rows.filter((row) => metric < 0 || row[metric] === name);
    return values.map((i) => ({
      refId: target.refId,
      name: name || columns[i].name,
      fields: [
        field('time', FieldType.time, own.map((row) => row[time])),
        field('value', FieldType.number, own.map((row) => row[i]), { displayNameFromDS: name || columns[i].name }, { metric: name }),
      ],
      length: own.length,
    }));
  });
}
