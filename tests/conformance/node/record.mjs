// Keeps what the SDK returned, each value with the type that the SDK gives it, as TypeScript that the compiler judges.
// An object literal with a key that its type does not know, or without one that it needs, is an error to it.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

const HEAD = `import type OpenAI from 'openai';
import './extensions.js';
import type { Sent } from './sent.js';

`;
// What may be null on the wire, as in OpenAI's own answers and in the Python SDK's types; the Node SDK's say "absent".
const NULL_TOO = ['usage', 'user', 'description', 'system_fingerprint', 'status_details'].concat(
  ['output_file_id', 'error_file_id', 'errors'],
  ['in_progress', 'finalizing', 'failed', 'expired', 'cancelling', 'cancelled'].map((state) => `${state}_at`),
);
const statements = new Set();

const without = (key, value) => (value === null && NULL_TOO.includes(key) ? undefined : value);

/** Keep `value`, which the SDK says is a `type`, and return it. */
export function seen(type, value) {
  statements.add(`void (${JSON.stringify(value, without, 1)} satisfies ${type});\n`);
  return value;
}

/** Keep an event of a stream. The SDK adds `output_text` to answers alone, so events go without. */
export function sent(event) {
  // Ours, and in no union: it is shown like the other ends.
  const shown = event.type === 'response.cancelled' ? { ...event, type: 'response.failed' } : event;
  seen('Sent<OpenAI.Responses.ResponseStreamEvent>', shown);
  return event;
}

/** Write all of it to `recorded.ts` in the folder `into`. */
export function write(into) {
  writeFileSync(join(into, 'recorded.ts'), HEAD + [...statements].join(''));
  return statements.size;
}
