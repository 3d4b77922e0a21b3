#!/usr/bin/env node
/* Prisma's query engine, served the way LiteLLM's database client expects it.
 *
 * Prisma publishes its native engine outside the package registries; the same engine, compiled to
 * WebAssembly, ships in the npm package @prisma/client. This file runs that one over Prisma's own
 * PostgreSQL driver adapter and speaks the native engine's HTTP protocol in front of it: GraphQL
 * in, GraphQL-shaped results out. The engine itself takes Prisma's JSON protocol; the translation
 * between the two is all that is done here. Set PRISMA_QUERY_ENGINE_BINARY to this file and
 * NODE_PATH to the folder of the npm packages.
 */
"use strict";

if (process.argv.includes("--version")) {
  console.log("query-engine 393aa359c9ad4a4bb28630fb5613f9c281cde053");
  process.exit(0);
}

const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const { Pool } = require("pg");
const { PrismaPg } = require("@prisma/adapter-pg");
const { bindAdapter } = require("@prisma/driver-adapter-utils");
const { parse } = require("graphql");

const ACTIONS = [
  ["findUniqueOrThrow", /^findUnique(.+)OrThrow$/],
  ["findFirstOrThrow", /^findFirst(.+)OrThrow$/],
  ["findUnique", /^findUnique(.+)$/],
  ["findFirst", /^findFirst(.+)$/],
  ["findMany", /^findMany(.+)$/],
  ["createOne", /^createOne(.+)$/],
  ["createMany", /^createMany(.+)$/],
  ["updateOne", /^updateOne(.+)$/],
  ["updateMany", /^updateMany(.+)$/],
  ["upsertOne", /^upsertOne(.+)$/],
  ["deleteOne", /^deleteOne(.+)$/],
  ["deleteMany", /^deleteMany(.+)$/],
  ["aggregate", /^aggregate(.+)$/],
  ["groupBy", /^groupBy(.+)$/],
];

function literal(node) {
  switch (node.kind) {
    case "IntValue":
      return Number.isSafeInteger(Number(node.value))
        ? Number(node.value)
        : { $type: "BigInt", value: node.value };
    case "FloatValue":
      return Number(node.value);
    case "NullValue":
      return null;
    case "ListValue":
      return node.values.map(literal);
    case "ObjectValue":
      return Object.fromEntries(node.fields.map((f) => [f.name.value, literal(f.value)]));
    default:
      return node.value; // strings, booleans, enum names
  }
}

function argumentsOf(field) {
  return Object.fromEntries((field.arguments ?? []).map((a) => [a.name.value, literal(a.value)]));
}

function selectionOf(field) {
  const selection = {};
  for (const child of field.selectionSet?.selections ?? []) {
    selection[child.name.value] = child.selectionSet
      ? { arguments: argumentsOf(child), selection: selectionOf(child) }
      : true;
  }
  return selection;
}

function translate(text) {
  const field = parse(text, { noLocation: true }).definitions[0].selectionSet.selections[0];
  const name = field.name.value;
  const key = field.alias?.value ?? name;
  const args = argumentsOf(field);
  if (name === "queryRaw" || name === "executeRaw") {
    // The driver adapter knows no arrays of PostgreSQL's type `name`; LiteLLM asks for one at start.
    args.query = args.query.replace("ARRAY_AGG(viewname)", "ARRAY_AGG(viewname::text)");
    const query = { arguments: { parameters: "[]", ...args }, selection: {} };
    return { key, name, body: { action: name, query } };
  }
  for (const [action, pattern] of ACTIONS) {
    const match = pattern.exec(name);
    if (match) {
      const query = { arguments: args, selection: selectionOf(field) };
      return { key, name, body: { modelName: match[1], action, query } };
    }
  }
  throw new Error(`unknown operation ${name}`);
}

function untag(value) {
  if (Array.isArray(value)) return value.map(untag);
  if (value && typeof value === "object") {
    if ("$type" in value) return value.$type === "BigInt" ? Number(value.value) : value.value;
    for (const key of Object.keys(value)) value[key] = untag(value[key]);
  }
  return value;
}

/* Rows of a raw query: the driver adapter leaves JSON columns as text, the native engine does not. */
function parsedRows(value) {
  const json = value.types.flatMap((type, i) => (type === "json" ? [i] : []));
  for (const row of value.rows)
    for (const i of json) if (typeof row[i] === "string") row[i] = JSON.parse(row[i]);
  return value;
}

function shaped(result, key) {
  if (!result.data) return result;
  const [value] = Object.values(result.data);
  const raw = value && typeof value === "object" && "columns" in value && "rows" in value;
  return { ...result, data: { [key]: raw ? parsedRows(value) : untag(value) } };
}

class Engine {
  static async open() {
    const runtime = path.dirname(require.resolve("@prisma/client/package.json")) + "/runtime";
    const glue = require(`${runtime}/query_engine_bg.postgresql.js`);
    const module = new WebAssembly.Module(
      fs.readFileSync(`${runtime}/query_engine_bg.postgresql.wasm`),
    );
    const instance = new WebAssembly.Instance(module, { "./query_engine_bg.js": glue });
    glue.__wbg_set_wasm(instance.exports);
    const schema = fs
      .readFileSync(process.env.PRISMA_DML_PATH, "utf8")
      .replace(/(provider\s*=\s*"prisma-client-py")/, '$1\n  previewFeatures = ["driverAdapters"]');
    const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 10 });
    const options = {
      datamodel: schema,
      env: process.env,
      logQueries: false,
      ignoreEnvVarErrors: true,
      datasourceOverrides: {},
      logLevel: "error",
      configDir: ".",
      engineProtocol: "json",
    };
    const engine = new Engine();
    engine.native = new glue.QueryEngine(options, () => {}, bindAdapter(new PrismaPg(pool)));
    await engine.native.connect("{}");
    return engine;
  }

  async one(text, transaction) {
    const { key, body } = translate(text);
    const answer = await this.native.query(JSON.stringify(body), "{}", transaction);
    return shaped(JSON.parse(answer), key);
  }

  async many(batch, transaction) {
    const parts = batch.map((item) => translate(item.query));
    const body = { batch: parts.map((part) => part.body), transaction: transaction ? {} : undefined };
    const answer = JSON.parse(await this.native.query(JSON.stringify(body), "{}", undefined));
    if (!answer.batchResult) return answer;
    return { batchResult: answer.batchResult.map((r, i) => shaped(r, parts[i].key)) };
  }

  async handle(method, url, headers, text) {
    if (method === "GET") return { status: "ok" };
    const transaction = headers["x-transaction-id"];
    if (url === "/transaction/start") {
      const { max_wait, timeout, isolation_level } = JSON.parse(text);
      const options = { max_wait, timeout, isolation_level };
      return JSON.parse(await this.native.startTransaction(JSON.stringify(options), "{}"));
    }
    const end = /^\/transaction\/([^/]+)\/(commit|rollback)$/.exec(url);
    if (end) {
      const call = end[2] === "commit" ? "commitTransaction" : "rollbackTransaction";
      return JSON.parse(await this.native[call](end[1], "{}"));
    }
    const request = JSON.parse(text);
    return request.batch
      ? this.many(request.batch, request.transaction)
      : this.one(request.query, transaction);
  }
}

async function main() {
  const port = Number(process.argv[process.argv.indexOf("-p") + 1]);
  const opening = Engine.open();
  const server = http.createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", async () => {
      let body;
      try {
        const text = Buffer.concat(parts).toString();
        body = await (await opening).handle(request.method, request.url, request.headers, text);
        if (process.env.PRISMA_ENGINE_TRACE && body.errors)
          console.error(text, JSON.stringify(body));
      } catch (error) {
        console.error("query engine:", error);
        body = { errors: [{ error: String(error), user_facing_error: {} }] };
      }
      const bytes = Buffer.from(JSON.stringify(body));
      response.writeHead(200, { "content-type": "application/json", "content-length": bytes.length });
      response.end(bytes);
    });
  });
  server.keepAliveTimeout = 600_000;
  server.listen(port, "localhost");
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));
}

main();
