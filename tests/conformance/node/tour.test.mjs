// Every method that the Node SDK has for a text model. QWENQ_URL and QWENQ_KEY name the running stack,
// QWENQ_RECORD the folder for what was seen.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { after, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import OpenAI, { toFile } from 'openai';
import { seen, sent, write } from './record.mjs';

const client = new OpenAI({
  baseURL: `${process.env.QWENQ_URL}/v1`,
  apiKey: process.env.QWENQ_KEY,
  maxRetries: 0,
  timeout: 120_000,
});
const STORY = 'Write a very long story about a lighthouse keeper and the sea. Tell every detail.';

after(() => console.log(`${write(process.env.QWENQ_RECORD)} values recorded`));

/** Everything that a stream or a list in pages brings. */
async function every(stream) {
  const all = [];
  for await (const each of await stream) all.push(each);
  return all;
}

const theEnd = async (id) => {
  for (const event of await every(client.responses.retrieve(id, { stream: true }))) sent(event);
  return seen('OpenAI.Responses.Response', await client.responses.retrieve(id));
};

test('an answer', async () => {
  const answer = await client.responses.create({
    model: 'default',
    input: [
      { role: 'developer', content: 'You are brief.' },
      { role: 'user', content: [{ type: 'input_text', text: 'Hello' }] },
      { role: 'assistant', content: 'Hello!' },
      { type: 'message', role: 'user', content: 'Who are you?' },
    ],
    instructions: 'Answer in English.',
    max_output_tokens: 12,
    temperature: 0.5,
    top_p: 0.9,
    metadata: { a: 'b' },
    truncation: 'auto',
    service_tier: 'priority',
    safety_identifier: 's',
    prompt_cache_key: 'k',
    parallel_tool_calls: false,
    text: { format: { type: 'text' } },
  });
  seen('OpenAI.Responses.Response', answer);
  assert.ok(answer.output_text);
  const items = await every(client.responses.inputItems.list(answer.id, { limit: 2, order: 'asc' }));
  for (const item of items) seen('OpenAI.Responses.ResponseItem', item);
  assert.equal(items.length, 4);
  const next = await client.responses.create({
    model: 'default',
    input: 'And where?',
    previous_response_id: answer.id,
    max_output_tokens: 4,
  });
  assert.equal(seen('OpenAI.Responses.Response', next).previous_response_id, answer.id);
  await client.responses.delete(answer.id);
  await assert.rejects(client.responses.retrieve(answer.id), OpenAI.NotFoundError);
});

test('a stream, resumed, and the helper to its final response', async () => {
  const asked = { model: 'default', input: 'Hello', temperature: 0, max_output_tokens: 40 };
  const events = await every(client.responses.create({ ...asked, stream: true }));
  events.forEach(sent);
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  const last = events.at(-1).response;
  const text = events.map((event) => (event.type === 'response.output_text.delta' ? event.delta : '')).join('');
  assert.equal(text, last.output[0].content[0].text);
  const rest = await every(client.responses.retrieve(last.id, { stream: true, starting_after: 6 }));
  assert.deepEqual(rest, events.slice(7));

  const helped = client.responses.stream({ ...asked, background: true });
  const final = await helped.finalResponse();
  assert.equal(final.status, 'completed');
  assert.equal(final.output_text, text);
  const again = client.responses.stream({ response_id: final.id, starting_after: 4 });
  assert.equal((await every(again))[0].sequence_number, 5);
});

test('the background', async () => {
  const job = await client.responses.create({ model: 'default', input: STORY, background: true });
  assert.equal(seen('OpenAI.Responses.Response', job).status, 'queued');
  seen("Omit<OpenAI.Responses.Response, 'output_text'>", await client.responses.cancel(job.id));
  assert.equal((await theEnd(job.id)).status, 'cancelled');
  const cut = await client.responses.create({
    model: 'default', input: STORY, background: true, max_output_tokens: 1,
  });
  assert.deepEqual((await theEnd(cut.id)).incomplete_details, { reason: 'max_output_tokens' });
});

test('a conversation', async () => {
  const made = await client.conversations.create({
    items: [{ type: 'message', role: 'user', content: 'My dog is called Max.' }],
    metadata: { a: 'b' },
  });
  seen('OpenAI.Conversations.Conversation', made);
  seen(
    'OpenAI.Conversations.ConversationItemList',
    await client.conversations.items.create(made.id, {
      items: [{ role: 'assistant', content: 'Noted.' }, { role: 'system', content: 'Be brief.' }],
    }),
  );
  const answer = await client.responses.create({
    model: 'default', input: 'What is it called?', conversation: made.id, max_output_tokens: 8,
  });
  assert.equal(answer.conversation?.id, made.id);
  const items = await every(client.conversations.items.list(made.id, { limit: 2, order: 'asc' }));
  for (const item of items) seen('OpenAI.Conversations.ConversationItem', item);
  assert.equal(items.length, 5);
  const id = items[0].id;
  assert.deepEqual(await client.conversations.items.retrieve(id, { conversation_id: made.id }), items[0]);
  await client.conversations.items.delete(id, { conversation_id: made.id });
  const changed = await client.conversations.update(made.id, { metadata: { c: 'd' } });
  assert.deepEqual(await client.conversations.retrieve(made.id), changed);
  seen('OpenAI.Conversations.ConversationDeletedResource', await client.conversations.delete(made.id));
});

test('a form, and tools', async () => {
  /** @type {OpenAI.Responses.FunctionTool} */
  const weather = {
    type: 'function',
    name: 'get_weather',
    description: 'The weather in a city.',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', enum: ['Paris', 'Rome'] } },
      required: ['city'],
      additionalProperties: false,
    },
    strict: true,
  };
  const form = await client.responses.create({
    model: 'default',
    input: 'Invent a city.',
    max_output_tokens: 80,
    text: { format: { type: 'json_schema', name: 'city', schema: weather.parameters ?? {}, strict: true } },
  });
  seen('OpenAI.Responses.Response', form);
  if (form.status === 'completed') assert.ok(['Paris', 'Rome'].includes(JSON.parse(form.output_text).city));
  const asked = { model: 'default', tools: [weather], max_output_tokens: 80 };
  const input = 'What is the weather in Paris?';
  const answer = await client.responses.create({ ...asked, input, tool_choice: 'required' });
  seen('OpenAI.Responses.Response', answer);
  const call = answer.output.find((item) => item.type === 'function_call');
  assert.deepEqual(Object.keys(JSON.parse(call?.arguments ?? '')), ['city']);
  for (const event of await every(client.responses.create({ ...asked, input, tool_choice: 'required', stream: true }))) {
    sent(event);
  }
  const continued = await client.responses.create({
    ...asked,
    input: [{ type: 'function_call_output', call_id: call?.call_id ?? '', output: 'Sunny.' }],
    previous_response_id: answer.id,
  });
  seen('OpenAI.Responses.Response', continued);
});

test('the chat completions', async () => {
  /** @type {Omit<OpenAI.ChatCompletionCreateParamsNonStreaming, 'stream'>} */
  const asked = {
    model: 'default',
    messages: [{ role: 'developer', content: 'You are brief.' }, { role: 'user', content: 'Hello' }],
    max_completion_tokens: 6,
    logprobs: true,
    top_logprobs: 2,
    seed: 1,
  };
  const made = await client.chat.completions.create({ ...asked, n: 2, store: true, metadata: { a: 'n' } });
  assert.equal(seen('OpenAI.ChatCompletion', made).choices.length, 2);
  assert.equal((await client.chat.completions.retrieve(made.id)).id, made.id);
  const listed = await every(client.chat.completions.list({ metadata: { a: 'n' }, limit: 1 }));
  assert.ok(listed.some(({ id }) => id === made.id));
  assert.equal((await every(client.chat.completions.messages.list(made.id, { limit: 1 }))).length, 2);
  seen('OpenAI.ChatCompletion', await client.chat.completions.update(made.id, { metadata: { c: 'd' } }));
  assert.ok(seen('OpenAI.ChatCompletionDeleted', await client.chat.completions.delete(made.id)).deleted);
  const options = { include_usage: true };
  const chunks = await every(client.chat.completions.create({ ...asked, stream: true, stream_options: options }));
  for (const chunk of chunks) seen('OpenAI.ChatCompletionChunk', chunk);
  assert.ok(chunks.at(-1).usage);
  const text = await client.chat.completions.stream({ ...asked, temperature: 0 }).finalContent();
  assert.ok(text);
});

test('the completions', async () => {
  const asked = { model: 'default', prompt: 'The capital of France is', max_tokens: 4, logprobs: 1 };
  seen('OpenAI.Completion', await client.completions.create(asked));
  const chunks = await every(client.completions.create({ ...asked, stream: true }));
  for (const chunk of chunks) assert.equal(chunk.object, 'text_completion');
  assert.ok(chunks.length > 1);
});

test('the models', async () => {
  const [model] = await every(client.models.list());
  assert.deepEqual(await client.models.retrieve(seen('OpenAI.Model', model).id), model);
});

test('the tokens of a prompt', async () => {
  const asked = { model: 'default', input: 'Hello there', instructions: 'Be brief.' };
  const counted = await client.responses.inputTokens.count(asked);
  seen('OpenAI.Responses.InputTokenCountResponse', counted);
  const answer = await client.responses.create({ ...asked, max_output_tokens: 1 });
  assert.equal(counted.input_tokens, answer.usage?.input_tokens);
});

test('the files', async () => {
  const line = { custom_id: 'a', method: 'POST', url: '/v1/responses', body: { model: 'default', input: 'Hello' } };
  const data = `${JSON.stringify(line)}\n`;
  const made = await client.files.create({ file: await toFile(Buffer.from(data), 'lines.jsonl'), purpose: 'batch' });
  assert.equal(seen('OpenAI.FileObject', made).bytes, data.length);
  assert.deepEqual(await client.files.retrieve(made.id), made);
  const files = await every(client.files.list({ limit: 1, purpose: 'batch' }));
  assert.ok(files.some((file) => file.id === made.id));
  assert.equal(await (await client.files.content(made.id)).text(), data);
  seen('OpenAI.FileDeleted', await client.files.delete(made.id));
});

test('the batches', async () => {
  const body = { model: 'default', input: 'Hello', max_output_tokens: 2 };
  const line = { custom_id: 'a', method: 'POST', url: '/v1/responses', body };
  const data = `${JSON.stringify(line)}\n`;
  const file = await client.files.create({ file: await toFile(Buffer.from(data), 'lines.jsonl'), purpose: 'batch' });
  let made = await client.batches.create({
    input_file_id: file.id, endpoint: '/v1/responses', completion_window: '24h', metadata: { a: 'b' },
  });
  while (made.status !== 'completed') {
    assert.ok(!['failed', 'expired', 'cancelled'].includes(made.status), made.status);
    await setTimeout(100);
    made = await client.batches.retrieve(made.id);
  }
  seen('OpenAI.Batch', made);
  const answer = JSON.parse(await (await client.files.content(made.output_file_id ?? '')).text());
  assert.equal((await client.responses.retrieve(answer.response.body.id)).service_tier, 'flex');
  assert.ok((await every(client.batches.list({ limit: 1 }))).some((batch) => batch.id === made.id));
  await assert.rejects(client.batches.cancel(made.id), { status: 409 });
});

test('the webhooks', async (t) => {
  const told = [];
  const receiver = createServer((request, response) => {
    let body = '';
    request.on('data', (piece) => (body += piece));
    request.on('end', () => {
      told.push({ body, headers: request.headers });
      response.end();
      receiver.emit('told');
    });
  });
  receiver.listen(0, '127.0.0.1');
  await once(receiver, 'listening');
  t.after(() => receiver.close());
  seen('OpenAI.Webhooks.WebhookEventTypeList', await client.webhooks.eventTypes.list());
  const made = await client.webhooks.create({
    name: 'orders',
    // @ts-ignore: an address, not a path of a socket
    url: `http://127.0.0.1:${receiver.address().port}/hook`,
    event_types: ['response.completed', 'response.incomplete'],
  });
  seen('OpenAI.Webhooks.WebhookEndpointWithSecret', made);
  for (const each of await every(client.webhooks.list({ limit: 1 }))) seen('OpenAI.Webhooks.WebhookEndpoint', each);
  seen('OpenAI.Webhooks.WebhookEndpoint', await client.webhooks.update(made.id, { name: 'bills' }));
  assert.equal((await client.webhooks.retrieve(made.id)).name, 'bills');
  const tested = await client.webhooks.test(made.id, { event_type: 'response.completed' });
  assert.ok(seen('OpenAI.Webhooks.WebhookEndpointTestResult', tested).success);
  const rotated = await client.webhooks.rotateSecret(made.id, { keep_old_secret_active_for_24_hours: true });
  seen('OpenAI.Webhooks.WebhookEndpointWithSecret', rotated);
  const job = await client.responses.create({
    model: 'default', input: 'Hello', background: true, max_output_tokens: 2,
  });
  while (!told.some(({ body }) => body.includes(job.id))) await once(receiver, 'told');
  const { body, headers } = told.find((each) => each.body.includes(job.id));
  for (const secret of [made.signing_secret, rotated.signing_secret]) {
    const event = await client.webhooks.unwrap(body, headers, secret);
    assert.equal(event.type, 'response.incomplete');
    assert.equal(event.data.id, job.id);
  }
  seen('OpenAI.Webhooks.DeletedWebhookEndpoint', await client.webhooks.delete(made.id));
});

test('the errors', async () => {
  for (const { kind, param, asked } of [
    { kind: OpenAI.BadRequestError, param: 'temperature', asked: { temperature: 3 } },
    { kind: OpenAI.NotFoundError, param: 'model', asked: { model: 'gpt-nowhere' } },
    { kind: OpenAI.NotFoundError, param: 'previous_response_id', asked: { previous_response_id: 'resp_0' } },
    { kind: OpenAI.BadRequestError, param: 'max_token', asked: { max_token: 3 } },
  ]) {
    const refused = client.responses.create({ model: 'default', input: 'a', ...asked });
    await assert.rejects(refused, (/** @type {any} */ error) => {
      assert.ok(error instanceof kind);
      assert.equal(error.param, param);
      assert.ok(error.requestID);
      return true;
    });
  }
  await assert.rejects(client.withOptions({ apiKey: 'sk-wrong' }).models.list(), OpenAI.AuthenticationError);
});
