#!/usr/bin/env bash
# lm-evaluation-harness: answers through chat and through raw completions, and log-likelihoods, on data that lies here.
#
#     QWENQ_URL=http://127.0.0.1:8000 QWENQ_KEY=... QWENQ_MODEL=CHECKPOINT QUESTIONS=gsm8k-test.jsonl PYTHON=python ./run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here"/*.yaml "$here"/*.jsonl "$work"
cd "$work"
head -n "${LINES_OF_IT:-8}" "${QUESTIONS:?a JSONL file with question and answer}" > questions.jsonl
"$python" "$here/tokenizer.py" "${QWENQ_MODEL:?the folder of the checkpoint}" "$work/tokenizer"
export OPENAI_API_KEY=$QWENQ_KEY HF_HUB_OFFLINE=1
evaluate() { "$python" -m lm_eval run --include_path "$work" --tasks "$1" --model "$2" --model_args "model=default,num_concurrent=4,max_retries=1,$3" "${@:4}"; }
url=$QWENQ_URL/v1
evaluate local_gsm8k local-chat-completions "base_url=$url/chat/completions" --apply_chat_template
evaluate local_gsm8k local-completions "base_url=$url/completions,tokenizer_backend=huggingface,tokenizer=$work/tokenizer,tokenized_requests=False"
evaluate local_capitals local-completions "base_url=$url/completions,tokenizer_backend=huggingface,tokenizer=$work/tokenizer,tokenized_requests=False"
evaluate local_capitals local-completions "base_url=$url/completions,tokenizer_backend=huggingface,tokenizer=$work/tokenizer,tokenized_requests=True"
