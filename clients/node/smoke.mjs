// SPDX-License-Identifier: Apache-2.0
//
// Shows that llama-orch can be used from another language, with nothing but the protos: gives a job and
// follows it to its end, cancels another, provokes one INVALID_ARGUMENT. Prints one JSON summary; exits with
// 1 when anything is not as the contract says.
//
//   node smoke.mjs [--server HOST:PORT] [--model ID] [--include DIR]
//
// DIR holds google/rpc/*.proto; `make deps` puts them where the default expects them.

import { createHash, randomUUID } from "node:crypto";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const TOKEN = process.env.LLORCH_TOKEN ?? "";
const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const { values: options } = parseArgs({
  options: {
    server: { type: "string", default: process.env.LLORCH_SERVER ?? "127.0.0.1:7070" },
    model: { type: "string", default: process.env.LLORCH_MODEL ?? "" },
    include: {
      type: "string",
      default: process.env.LLAMAORCH_PROTO_INCLUDE ?? join(ROOT, ".build", "third_party"),
    },
    proto: { type: "string", default: join(ROOT, "proto") },
  },
});

const CALL_TIMEOUT_MS = 30_000;
const CALLS_MAX = 3;
// Of those in a row that bring no output.
const RESUMES_MAX = 10;
const RESUME_WAIT_MS = 200;

const definition = protoLoader.loadSync(
  [
    "llamaorch/orchestrator/v1/orchestrator_service.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
  ],
  {
    includeDirs: [options.proto, options.include],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  },
);
const { OrchestratorService } = grpc.loadPackageDefinition(definition).llamaorch.orchestrator.v1;
if (TOKEN && !/^(localhost|127\.[\d.]+|\[::1\]):\d+$/.test(options.server)) {
  throw new Error(`the token would pass in the clear to ${options.server}: unset LLORCH_TOKEN`);
}
// What is local passes no proxy.
const client = new OrchestratorService(options.server, grpc.credentials.createInsecure(), {
  "grpc.enable_http_proxy": 0,
});

const mismatches = [];

function expect(holds, what) {
  if (!holds) mismatches.push(what);
}

/** First eight bytes, big-endian, of a SHA-256: `hash` itself can go on. */
function digestOf(hash) {
  return hash.copy().digest().readBigUInt64BE(0);
}

function metadataWith(correlationId) {
  const metadata = new grpc.Metadata();
  metadata.set("x-correlation-id", correlationId);
  if (TOKEN) metadata.set("authorization", `Bearer ${TOKEN}`);
  return metadata;
}

/** Makes a unary call, and makes it again where that is safe: Enqueue carries a request_id. */
async function call(method, request, correlationId = randomUUID()) {
  for (let calls = 1; ; calls += 1) {
    try {
      return await callOnce(method, request, correlationId);
    } catch (error) {
      const again = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED].includes(error.code);
      if (!again || calls === CALLS_MAX) throw error;
    }
    await sleep(RESUME_WAIT_MS);
  }
}

/** Returns { response, correlationId } or throws the ServiceError. */
function callOnce(method, request, correlationId) {
  return new Promise((resolve, reject) => {
    let returned;
    const started = client[method](
      request,
      metadataWith(correlationId),
      { deadline: Date.now() + CALL_TIMEOUT_MS },
      (error, response) => (error ? reject(error) : resolve({ response, correlationId: returned })),
    );
    started.on("metadata", (initial) => {
      [returned] = initial.get("x-correlation-id");
    });
  });
}

/** What a reader knows of a job's output, checked batch by batch. */
class Output {
  hash = createHash("sha256");
  offset = 0n;
  attempt = 0;
  pieces = 0;
  text = "";
  outcome = null;

  resumePoint() {
    if (this.attempt === 0) return null;
    return {
      attempt: this.attempt,
      text_offset: this.offset.toString(),
      prefix_digest: digestOf(this.hash).toString(),
    };
  }

  accept(event) {
    expect(this.outcome === null || event.event === undefined, `${event.event} after the outcome`);
    if (event.event === "tokens") this.tokens(event.tokens);
    if (event.event === "end") this.end(event.end);
    if (event.event === "error") this.outcome = { state: "FAILED", error: event.error.message };
  }

  tokens(batch) {
    const bytes = Buffer.from(batch.pieces.join(""), "utf8");
    // The server may begin before the place that was asked for; what is known is skipped.
    const known = Number(this.offset - BigInt(batch.text_offset));
    expect(known >= 0, `offset ${batch.text_offset}, not ${this.offset}`);
    if (known === 0) {
      expect(BigInt(batch.prefix_digest) === digestOf(this.hash), `digest at ${batch.text_offset}`);
    }
    const fresh = bytes.subarray(Math.max(known, 0));
    this.hash.update(fresh);
    this.offset += BigInt(fresh.length);
    this.attempt = batch.attempt;
    this.pieces += batch.pieces.length;
    this.text += fresh.toString("utf8");
  }

  end(end) {
    expect(BigInt(end.text_bytes) === this.offset, `end at ${end.text_bytes}, not ${this.offset}`);
    if (end._text_digest) {
      expect(BigInt(end.text_digest) === digestOf(this.hash), "digest of the whole output");
    }
    this.outcome = { state: end.state.replace("JOB_STATE_", ""), finish_reason: end.finish_reason };
  }
}

/** Reads one StreamTokens call to its close, which lasts as long as its job; returns its status. */
function read(jobId, output) {
  return new Promise((resolve) => {
    const request = { job_id: jobId, resume_from: output.resumePoint() };
    const stream = client.StreamTokens(request, metadataWith(randomUUID()));
    stream.on("data", (message) => message.events.forEach((event) => output.accept(event)));
    // The status event tells the same; without a listener here an error would end the process.
    stream.on("error", () => {});
    stream.on("status", resolve);
  });
}

/** Follows a job to its outcome: a close without one, or UNAVAILABLE, means "go on". */
async function follow(jobId) {
  const output = new Output();
  let before = output.offset;
  for (let resumes = 0, idle = 0; idle <= RESUMES_MAX; resumes += 1) {
    const status = await read(jobId, output);
    if (output.outcome !== null) return { output, resumes };
    if (status.code !== grpc.status.OK && status.code !== grpc.status.UNAVAILABLE) throw status;
    idle = output.offset > before ? 0 : idle + 1;
    before = output.offset;
    await sleep(RESUME_WAIT_MS);
  }
  throw new Error(`no outcome of ${jobId} after ${RESUMES_MAX} resumes without output`);
}

/** Reads the google.rpc details of an error: { reason, fields }. */
function detailsOf(error) {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (packed === undefined) return { reason: null, fields: [] };
  const types = new Map(
    ["Status", "ErrorInfo", "BadRequest"].map((name) => [name, definition[`google.rpc.${name}`]]),
  );
  const result = { reason: null, fields: [] };
  for (const detail of types.get("Status").deserialize(packed).details) {
    const type = types.get(detail.type_url.split(".").at(-1));
    const value = type?.deserialize(detail.value);
    if (detail.type_url.endsWith(".ErrorInfo")) result.reason = value.reason;
    if (detail.type_url.endsWith(".BadRequest")) {
      result.fields = value.field_violations.map((violation) => violation.field);
    }
  }
  return result;
}

async function model() {
  if (options.model) return options.model;
  const { response } = await call("GetCapabilities", {});
  const [first] = response.replica_sets;
  if (first === undefined) throw new Error("no pool serves a model; name one with --model");
  return first.model_id;
}

function spec(modelId, text, maxTokens) {
  return {
    request_id: randomUUID(),
    model_id: modelId,
    input: { text },
    sampling: { max_tokens: maxTokens, temperature: 0 },
  };
}

async function finishOne(modelId) {
  const correlationId = randomUUID();
  const job = spec(modelId, "Say hello.", 16);
  const { response, correlationId: returned } = await call("Enqueue", { spec: job }, correlationId);
  expect(returned === correlationId, `x-correlation-id ${returned}, not ${correlationId}`);
  const again = await call("Enqueue", { spec: job });
  expect(again.response.job_id === response.job_id, "same request_id, other job");
  expect(again.response.duplicate, "a repeated request_id is a duplicate");
  const { output, resumes } = await follow(response.job_id);
  expect(output.outcome.state === "FINISHED", `first job ended ${output.outcome.state}`);
  return {
    job_id: response.job_id,
    ...output.outcome,
    pieces: output.pieces,
    text_bytes: Number(output.offset),
    text: output.text,
    resumes,
  };
}

async function cancelOne(modelId) {
  const { response } = await call("Enqueue", { spec: spec(modelId, "Count to a million.", 1024) });
  const { response: cancelled } = await call("Cancel", { job_id: response.job_id });
  const state = cancelled.job.state.replace("JOB_STATE_", "");
  // A fast engine may end the job first: then the answer is that true state.
  expect(["CANCELLED", "FINISHED"].includes(state), `cancel answered ${state}`);
  const { output } = await follow(response.job_id);
  expect(output.outcome.state === state, `cancel answered ${state}, the stream ${output.outcome.state}`);
  return { job_id: response.job_id, state };
}

async function provokeOne() {
  try {
    await call("Enqueue", { spec: { input: { text: "" } } });
  } catch (error) {
    const { reason, fields } = detailsOf(error);
    expect(error.code === grpc.status.INVALID_ARGUMENT, `code ${error.code}, not INVALID_ARGUMENT`);
    expect(reason === "INVALID_PARAMS", `reason ${reason}, not INVALID_PARAMS`);
    expect(fields.length > 0, "no field is named");
    return { code: grpc.status[error.code], reason, fields };
  }
  expect(false, "a job without a model was accepted");
  return null;
}

async function main() {
  const summary = { server: options.server };
  try {
    summary.model = await model();
    summary.finished = await finishOne(summary.model);
    summary.cancelled = await cancelOne(summary.model);
    summary.invalid = await provokeOne();
  } catch (error) {
    mismatches.push(`${error.details ?? error.message ?? error}`);
  }
  client.close();
  console.log(JSON.stringify({ ok: mismatches.length === 0, ...summary, mismatches }));
  process.exitCode = mismatches.length === 0 ? 0 : 1;
}

await main();
