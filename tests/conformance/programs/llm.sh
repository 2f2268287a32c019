#!/usr/bin/env bash
# The program `llm` with three entries in its extra-openai-models.yaml: Responses, Chat Completions, Completions.
#
#     QWENQ_URL=http://127.0.0.1:8000 QWENQ_KEY=... LLM=llm ./llm.sh
set -euo pipefail
llm=${LLM:-llm}
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
trap 'rm -rf "$LLM_USER_PATH"' EXIT
entry() { printf -- '- model_id: %s\n  model_name: default\n  api_base: %s/v1\n  api_key_name: qwenq\n%s' "$1" "$QWENQ_URL" "${2:-}"; }
{
  entry responses $'  responses: true\n  supports_schema: true\n  supports_tools: true\n'
  entry chat $'  supports_schema: true\n  supports_tools: true\n'
  entry completion $'  completion: true\n'
} > "$LLM_USER_PATH/extra-openai-models.yaml"
# Closed: an open one lets a small model add keys until its tokens are used up.
schema='{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
  "required": ["name", "age"], "additionalProperties": false}'
"$llm" keys set qwenq --value "$QWENQ_KEY"
for model in responses chat; do
  echo "== $model: an answer as a stream, and one that is not"
  "$llm" -m "$model" -s 'You are Robo, a friendly robot.' -o temperature 0 -o max_tokens 40 'My dog is called Max. Say hello to it.'
  "$llm" -m "$model" --no-stream -o temperature 0 -o max_tokens 40 'Hello'
  echo "== $model: the conversation goes on"
  "$llm" -m "$model" -c -o temperature 0 -o max_tokens 40 'Thank you'
  echo "== $model: a schema"
  "$llm" -m "$model" --schema "$schema" -o max_tokens 100 'Invent a dog' | python3 -m json.tool
done
echo "== completion"
"$llm" -m completion -o temperature 0 -o max_tokens 12 'The capital of France is'
"$llm" logs -n 20 --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)), "answers in the log of llm")'
