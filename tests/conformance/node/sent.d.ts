import type OpenAI from 'openai';

/** An event as it comes over the wire: the SDK computes `output_text` for answers alone. */
export type Sent<Event> = Event extends { response: OpenAI.Responses.Response }
  ? Omit<Event, 'response'> & { response: Omit<OpenAI.Responses.Response, 'output_text'> }
  : Event;
