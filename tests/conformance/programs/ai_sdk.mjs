// The Vercel AI SDK as its documentation shows it: generateText, streamText, a chat whose answers go back, an abort.
//
//     QWENQ_URL=http://127.0.0.1:8000 QWENQ_KEY=... node ai_sdk.mjs responses|chat|completion
import assert from 'node:assert/strict';
import { createOpenAI } from '@ai-sdk/openai';
import { generateText, streamText } from 'ai';

const provider = createOpenAI({ baseURL: `${process.env.QWENQ_URL}/v1`, apiKey: process.env.QWENQ_KEY });
const kind = process.argv[2] ?? 'responses';
const model = provider[kind]('default');
const system = 'You are Robo, a friendly robot.';
const common = { model, maxRetries: 0, temperature: 0, maxOutputTokens: 60 };

const answer = await generateText({ ...common, system: 'You are brief.', prompt: 'Hello, who are you?' });
console.log('generateText:', answer.text, answer.usage, answer.finishReason, answer.warnings);
assert.ok(answer.text);
assert.ok(answer.usage.outputTokens > 0);

const messages = [{ role: 'user', content: "My dog's name is Max." }];
const first = await generateText({ ...common, system, messages });
messages.push(...first.response.messages, { role: 'user', content: "What is my dog's name?" });
const second = await generateText({ ...common, system, messages });
console.log('chat:', second.text);
assert.match(second.text, /Max/);

const stream = streamText({ ...common, prompt: 'Count to five.', onError: ({ error }) => { throw error; } });
const pieces = [];
for await (const piece of stream.textStream) pieces.push(piece);
console.log('streamText:', pieces.length, 'pieces:', pieces.join(''), await stream.usage, await stream.finishReason);
assert.ok(pieces.length > 3);

const cut = streamText({
  ...common, maxOutputTokens: 400, prompt: 'Tell a very long story.', abortSignal: AbortSignal.timeout(1500),
});
let end = '';
for await (const part of cut.fullStream) end = part.type;
console.log('aborted stream ends with:', end);
assert.equal(end, 'abort');
console.log('all of it worked');
