// What the scripts for Node share: they print what an SDK reported, one JSON object a line.
//
// The SDKs are used as their documentation shows, with nothing changed but the base URL.

"use strict";

const { readFileSync } = require("node:fs");
const { join } = require("node:path");

function show(call, facts) {
  process.stdout.write(`${JSON.stringify({ call, ...facts })}\n`);
}

/** Makes a call and prints what came of it. */
async function attempt(call, run) {
  let facts;
  try {
    facts = await run();
  } catch (error) {
    // Whatever the SDK throws is what is reported.
    facts = { error: error.constructor.name, status: error.status, message: error.message };
  }
  show(call, facts);
}

/** Prints the versions of packages that are installed. */
function versions(...packages) {
  const version = (name) =>
    JSON.parse(readFileSync(join(process.env.NODE_PATH, name, "package.json"))).version;
  const known = packages.map((name) => [name, version(name)]);
  show("versions", { node: process.version, ...Object.fromEntries(known) });
}

module.exports = { attempt, show, versions };
