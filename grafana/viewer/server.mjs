// The small server behind the page: its files, the dashboards as they are, Prometheus, and Postgres
// by read-only SQL. It listens on loopback alone, and answers to nobody who calls it by another name.
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';

import { expand } from './macros.mjs';

const BODY_BYTES_MAX = 1 << 20;
const PAGE = fileURLToPath(new URL('dist', import.meta.url));
const ORDER = ['overview', 'cost', 'latency', 'balances', 'log', 'self'];
const TYPES = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.woff2': 'font/woff2',
};

// Types of Postgres by what a panel makes of them; everything else is a text.
const TIMES = new Set([1082, 1114, 1184]);
const NUMBERS = new Set([20, 21, 23, 26, 700, 701, 1700]);
const kind = (oid) => (TIMES.has(oid) ? 'time' : NUMBERS.has(oid) ? 'number' : oid === 16 ? 'boolean' : 'string');
const asIs = (text) => text;
const parsers = {
  getTypeParser: (oid) => {
    switch (kind(oid)) {
      case 'time':
        return (text) => Date.parse(text.includes(':') ? text.replace(/([+-]\d\d)$/, '$1:00') : `${text}T00:00Z`);
      case 'number':
        return Number;
      case 'boolean':
        return (text) => text === 't';
      default:
        return asIs;
    }
  },
};

function dashboards(folder) {
  const place = (name) => ORDER.indexOf(name.replace('.json', '')) + 1 || ORDER.length + 1;
  return readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .sort((a, b) => place(a) - place(b) || a.localeCompare(b))
    .map((name) => JSON.parse(readFileSync(join(folder, name), 'utf8')));
}

async function sql(pool, text) {
  const { sql, ...moment } = JSON.parse(text);
  const { fields, rows } = await pool.query({ text: expand(sql, moment), rowMode: 'array', types: parsers });
  return { columns: fields.map(({ name, dataTypeID }) => ({ name, type: kind(dataTypeID) })), rows };
}

async function prometheus(origin, request, body) {
  const answer = await fetch(new URL(request.url.replace(/^\/prometheus/, ''), origin), {
    method: request.method,
    body: request.method === 'POST' ? body : undefined,
    headers: { 'content-type': request.headers['content-type'] ?? 'text/plain' },
  });
  return answer.json();
}

async function bodyOf(request) {
  const parts = [];
  let length = 0;
  for await (const part of request) {
    length += part.length;
    if (length > BODY_BYTES_MAX) throw new Error('the question is too long');
    parts.push(part);
  }
  return Buffer.concat(parts).toString();
}

/** A file of the page; a path without a file's ending is the page itself. */
function file(path) {
  const type = TYPES[extname(path)];
  const name = resolve(join(PAGE, type ? path : 'index.html'));
  if (!name.startsWith(PAGE + sep) || !existsSync(name)) return { status: 404, type: 'text/plain', content: '' };
  return { status: 200, type: type ?? 'text/html', content: readFileSync(name) };
}

/**
 * Starts it, on a free port unless one is given, for a Prometheus, a login of Postgres that may read,
 * a folder of dashboards and the interval of the scrapes.
 */
export async function serve({ prometheus: origin, postgres, dashboards: folder, scrapeSeconds, port = 0 }) {
  const pool = new pg.Pool({
    connectionString: postgres,
    max: 4,
    types: parsers,
    // Whatever a query says, and however long it takes.
    options: '-c default_transaction_read_only=on -c statement_timeout=20s -c timezone=UTC',
  });
  // A connection that breaks while idle; the next query opens another one.
  pool.on('error', () => {});

  async function answer(request) {
    const { pathname } = new URL(request.url, 'http://localhost');
    const body = await bodyOf(request);
    if (pathname === '/dashboards') return dashboards(folder);
    if (pathname === '/settings') return { scrapeSeconds };
    if (pathname === '/postgres') return sql(pool, body);
    if (pathname.startsWith('/prometheus/api/v1/')) return prometheus(origin, request, body);
    return file(pathname);
  }

  const server = createServer(async (request, response) => {
    // A page of somebody else's may lead its own name here.
    if (!/^(127\.0\.0\.1|localhost)(:\d+)?$/.test(request.headers.host ?? '')) {
      response.writeHead(403).end();
      return;
    }
    try {
      const found = await answer(request);
      if (found.content !== undefined) response.writeHead(found.status, { 'content-type': found.type }).end(found.content);
      else response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(found));
    } catch (error) {
      response.writeHead(500, { 'content-type': 'application/json' }).end(JSON.stringify({ error: error.message }));
    }
  });
  await new Promise((resolve, reject) => server.on('error', reject).listen(port, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    close: async () => {
      server.closeAllConnections();
      server.close();
      await pool.end();
    },
  };
}
