// Follows one answer and prints a line of JSON for each event, and at the end one for the final response.
// QWENQ_BODY is the request. `helper` reads it with `responses.stream()`; `resume` asks for the rest, with
// `starting_after`, whenever its connection breaks.
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: `${process.env.QWENQ_URL}/v1`, apiKey: process.env.QWENQ_KEY, maxRetries: 0 });
const body = JSON.parse(process.env.QWENQ_BODY ?? '{}');
const say = (value) => console.log(JSON.stringify(value));
const told = ({ sequence_number, type, delta = '' }) => say({ sequence_number, type, delta });
const ENDS = ['response.completed', 'response.incomplete', 'response.failed', 'response.cancelled'];

async function helper() {
  const stream = client.responses.stream(body);
  for await (const event of stream) told(event);
  const { id, status, output_text } = await stream.finalResponse();
  say({ id, status, output_text });
}

async function resume() {
  const { id } = await client.responses.create({ ...body, background: true });
  let last = { sequence_number: -1, type: '' };
  while (!ENDS.includes(last.type)) {
    const after = last.sequence_number < 0 ? {} : { starting_after: last.sequence_number };
    try {
      for await (const event of await client.responses.retrieve(id, { stream: true, ...after })) told((last = event));
    } catch (error) {
      if (error instanceof OpenAI.APIError && error.status !== undefined) throw error;
      say({ broken: error.constructor.name });
    }
  }
  const { status, output_text } = await client.responses.retrieve(id);
  say({ id, status, output_text });
}

await { helper, resume }[process.argv[2] ?? '']?.();
