// A Node program that exports one span as OTLP in JSON, by hand, below the span in TRACEPARENT.
import { randomBytes } from "node:crypto";

const [, traceId, parentSpanId] = process.env.TRACEPARENT.split("-");
const now = `${BigInt(Date.now()) * 1000000n}`;
const span = { traceId, parentSpanId, spanId: randomBytes(8).toString("hex"), name: "node", kind: 1, startTimeUnixNano: now, endTimeUnixNano: now };
const resource = { attributes: [{ key: "service.name", value: { stringValue: "node-program" } }] };
const body = JSON.stringify({ resourceSpans: [{ resource, scopeSpans: [{ scope: { name: "by hand" }, spans: [span] }] }] });
const url = `${process.env.OTEL_EXPORTER_OTLP_ENDPOINT}/v1/traces`;
const answer = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body });
console.log(answer.status, await answer.text());
