// What the service sends beyond the SDK's types: docs/api.md describes it, and tests/conformance/ledger.py says why.
import 'openai';

declare module 'openai/resources/responses/responses' {
  interface Response {
    store: boolean;
    presence_penalty: number;
    frequency_penalty: number;
    queue: { position: number; expected_start: number | null } | null;
  }
  interface ResponseError {
    type: string;
  }
  interface ResponseFunctionCallArgumentsDoneEvent {
    name: string;
  }
}

declare module 'openai/resources/webhooks/webhooks' {
  interface WebhookEndpoint {
    enabled: boolean;
    disabled_reason: string | null;
  }
  interface WebhookEndpointWithSecret {
    enabled: boolean;
    disabled_reason: string | null;
  }
}
