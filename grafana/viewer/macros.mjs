// The macros of Grafana's Postgres data source that the dashboards use.

/** The SQL with its macros expanded. `from` and `to` are times in ISO 8601. */
export function expand(sql, { from, to, intervalMs }) {
  const interval = `${Math.max(1, Math.round(intervalMs / 1000))}s`;
  return sql
    .replaceAll('$__interval', interval)
    .replaceAll('$__timeFrom()', `'${from}'`)
    .replaceAll('$__timeTo()', `'${to}'`)
    .replace(/\$__timeFilter\(([^()]+)\)/g, (_, column) => `${column} BETWEEN '${from}' AND '${to}'`)
    .replace(/\$__timeGroup(Alias)?\(([^(),]+),\s*'?(\w+)'?\)/g, (_, alias, column, every) => {
      const size = seconds(every);
      return `to_timestamp(floor(extract(epoch from ${column}) / ${size}) * ${size})${alias ? ' AS "time"' : ''}`;
    });
}

const UNITS = { s: 1, m: 60, h: 3600, d: 86400 };

function seconds(duration) {
  const [, count, unit] = /^(\d+)([smhd])$/.exec(duration) ?? [];
  if (!unit) throw new Error(`not an interval: ${duration}`);
  return Number(count) * UNITS[unit];
}
