// Everything that the dashboards show, on this machine: Taffrail under the traffic of its demo, a
// throwaway Postgres, a Prometheus with the rules of alerts/, and the page that draws the
// dashboards. It runs until Ctrl-C and leaves nothing behind.
//
// node observe.mjs --root <repository> [--taffrail <program>] [--pictures <folder> --minutes <number>]
import { spawn, spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { parseArgs } from 'node:util';
import pg from 'pg';

import { takePictures } from './pictures.mjs';
import { serve } from './server.mjs';

const { values: options } = parseArgs({
  options: {
    root: { type: 'string' },
    taffrail: { type: 'string' },
    pictures: { type: 'string' },
    minutes: { type: 'string', default: '12' },
    port: { type: 'string', default: '0' },
  },
});

options.taffrail ??= join(options.root, 'target/debug/taffrail');

const SCRAPE_SECONDS = 2;
const START_MILLIS = 60_000;
const folder = mkdtempSync(join(tmpdir(), 'taffrail-observe-'));
const children = [];
let isEnding = false;

class Mend extends Error {}

function find(name, ...folders) {
  const all = [...process.env.PATH.split(delimiter), ...folders];
  const found = all.map((dir) => join(dir, name)).find(existsSync);
  if (!found) throw new Mend(`${name} is missing: run scripts/test-setup.sh`);
  return found;
}

function postgresPrograms() {
  const debian = '/usr/lib/postgresql';
  const versions = existsSync(debian) ? readdirSync(debian).sort((a, b) => b - a) : [];
  const folders = versions.map((version) => join(debian, version, 'bin'));
  return { initdb: find('initdb', ...folders), postgres: find('postgres', ...folders) };
}

/** What is put before a server that refuses to run as root. */
function unprivileged() {
  if (process.getuid() !== 0) return [];
  const { stdout } = spawnSync('id', ['-u', 'postgres'], { encoding: 'utf8' });
  const user = Number(stdout) || 65534;
  chownSync(folder, user, user);
  return ['setpriv', `--reuid=${user}`, `--regid=${user}`, '--clear-groups'];
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts a program; resolves with what `ready` finds in what it says, if that is to be waited for. */
function start(name, [program, ...words], ready, env = {}) {
  // Of a group of its own, so that Ctrl-C reaches this process alone and the order of ending is ours.
  const child = spawn(program, words, {
    detached: true,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.push({ name, child });
  let said = '';
  return new Promise((resolve, reject) => {
    const listen = (data) => {
      said = (said + data).slice(-20_000);
      const found = ready?.exec(said);
      if (found) resolve(found[1]);
    };
    child.stdout.on('data', listen);
    child.stderr.on('data', listen);
    child.on('error', reject);
    child.on('exit', (code) => {
      const problem = new Error(`${name} ended (${code}): ${said.slice(-2000)}`);
      reject(problem);
      if (!isEnding) end(problem);
    });
    if (!ready) resolve();
  });
}

async function eventually(what, probe) {
  const deadline = Date.now() + START_MILLIS;
  for (;;) {
    try {
      return await probe();
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`${what}: ${error.message}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

async function postgres() {
  const programs = postgresPrograms();
  const before = unprivileged();
  const data = join(folder, 'postgres');
  const words = [...before, programs.initdb, '--no-sync', '-A', 'trust', '-U', 'postgres', '-E', 'UTF8', '--locale=C.UTF-8', '-D', data];
  const made = spawnSync(words[0], words.slice(1), { cwd: '/', encoding: 'utf8' });
  if (made.status !== 0) throw new Error(`initdb: ${made.stderr ?? made.error}`);
  const port = await freePort();
  const settings = [`port=${port}`, 'listen_addresses=127.0.0.1', `unix_socket_directories=${folder}`, 'fsync=off'];
  await start('Postgres', [...before, programs.postgres, '-D', data, ...settings.flatMap((setting) => ['-c', setting])]);
  const url = (user, database) => `postgres://${user}@127.0.0.1:${port}/${database}`;
  const run = (database, sql) =>
    eventually('Postgres', async () => {
      const client = new pg.Client(url('postgres', database));
      await client.connect();
      try {
        await client.query(sql);
      } finally {
        await client.end();
      }
    });
  await run('postgres', 'create database taffrail');
  return { url, run };
}

async function demo(name, store, words, env) {
  const program = [options.taffrail, 'demo', '--seconds', '8640000', '--store', store, ...words];
  const ready = /metrics\s+http:\/\/([\d.:]+)\/metrics/;
  return { namespace: name, address: await start(`the demo ${name}`, program, ready, { POD_NAMESPACE: name, ...env }) };
}

async function prometheus(demos) {
  const port = await freePort();
  const targets = demos.map(
    ({ namespace, address }) => `      - targets: ["${address}"]\n        labels: { namespace: ${namespace} }`,
  );
  const file = join(folder, 'prometheus.yml');
  writeFileSync(
    file,
    `global:
  scrape_interval: ${SCRAPE_SECONDS}s
  evaluation_interval: 5s
rule_files: ["${join(options.root, 'alerts')}/*.yaml"]
scrape_configs:
  - job_name: taffrail
    static_configs:
${targets.join('\n')}
`,
  );
  const data = join(folder, 'prometheus');
  mkdirSync(data);
  const url = `http://127.0.0.1:${port}`;
  const words = [`--config.file=${file}`, `--storage.tsdb.path=${data}`, `--web.listen-address=127.0.0.1:${port}`];
  await start('Prometheus', [find('prometheus'), ...words]);
  await eventually('Prometheus', async () => {
    const { ok } = await fetch(`${url}/-/ready`);
    if (!ok) throw new Error('it is not ready');
  });
  return url;
}

async function main() {
  find('prometheus');
  const { url, run } = await postgres();
  const store = url('postgres', 'taffrail');
  const shop = await demo('shop', store, ['--history', '30'], { POD_NAME: 'shop-0' });
  const lab = await demo('lab', store, ['--role', 'sidecar'], { POD_NAME: 'lab-0' });
  await run('taffrail', 'create role viewer login in role taffrail_reader');
  const metrics = await prometheus([shop, lab]);
  const { url: page } = await serve({
    prometheus: metrics,
    postgres: url('viewer', 'taffrail'),
    dashboards: join(options.root, 'grafana'),
    scrapeSeconds: SCRAPE_SECONDS,
    port: Number(options.port),
  });
  console.log(`
The dashboards, of the demo's traffic:
  dashboards  ${page}
  Prometheus  ${metrics}
  metrics     http://${shop.address}/metrics
  Postgres    psql ${url('viewer', 'taffrail')}

Ctrl-C ends all of it.`);
  if (!options.pictures) return;
  console.log(`\nPictures are taken in ${options.minutes} minutes.`);
  await new Promise((resolve) => setTimeout(resolve, options.minutes * 60_000));
  await takePictures({ page, folder: options.pictures, from: `now-${options.minutes}m` });
  await end();
}

/** Ends everything, the last that was started first. */
async function end(problem) {
  if (isEnding) return;
  isEnding = true;
  for (const { child } of children.reverse()) {
    if (child.exitCode !== null || child.signalCode !== null || !child.pid) continue;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    const late = setTimeout(() => child.kill('SIGKILL'), 10_000);
    // Of Postgres, not to wait for clients.
    child.kill('SIGINT');
    await ended;
    clearTimeout(late);
  }
  rmSync(folder, { recursive: true, force: true });
  if (problem) console.error(problem instanceof Mend ? problem.message : problem);
  process.exit(problem ? 1 : 0);
}

process.on('SIGINT', () => end());
process.on('SIGTERM', () => end());
main().catch(end);
