/*
 * Every bound in one place, with its reason. Full means "busy" at the edge, never growth.
 */
#ifndef SHOAL_BASE_LIMITS_H
#define SHOAL_BASE_LIMITS_H

/* model: what a file may claim before we believe it is an attack or a broken file. The largest real
 * models have about 130 layers, 2,000 tensors a shard file, 300,000 tokens and 600,000 merges. */
#define LIMIT_GGUF_KV_COUNT          65536
#define LIMIT_GGUF_TENSOR_COUNT      65536
#define LIMIT_GGUF_KEY_BYTES         65535       /* the format's own bound */
#define LIMIT_GGUF_TENSOR_NAME_BYTES 63          /* ggml keeps names in 64 bytes */
#define LIMIT_GGUF_STRING_BYTES      (16u << 20) /* chat templates are under 100 KB */
#define LIMIT_GGUF_ARRAY_COUNT       (16u << 20) /* merges of the largest vocabularies: under 1 M */
#define LIMIT_MODEL_LAYERS           1024
#define LIMIT_MODEL_WIDTH            (1u << 20) /* any of: embedding, feed-forward, heads x head size */
#define LIMIT_VOCAB_TOKENS           (1u << 21)

/* cluster shape of one instance */
#define LIMIT_RANKS  64
#define LIMIT_STAGES 64

/* text */
#define LIMIT_PROMPT_BYTES      (16u << 20) /* 4 M tokens: more than any context */
#define LIMIT_STOP_STRINGS      16
#define LIMIT_STOP_STRING_BYTES 256
#define LIMIT_GRAMMAR_BYTES     (256u << 10) /* a JSON schema; OpenAI allows 120,000 characters */

/* engine */
#define LIMIT_SLOTS        64   /* sequences with a KV cache in one engine */
#define LIMIT_BATCH_TOKENS 2048 /* tokens in one step */
#define LIMIT_CONTEXT_TOKENS                                                                       \
    (1u << 24)                  /* of one sequence: far more than any model was made for           \
                                 */
#define LIMIT_DRAFT_TOKENS 32   /* guessed ahead in one sequence: more are hardly ever right */
#define LIMIT_LOGIT_BIAS   1024 /* OpenAI allows 300 */
#define LIMIT_TOP_LOGPROBS 20   /* likeliest tokens told of each place; OpenAI's bound */

/* comm */
#define LIMIT_COMM_FRAME_BYTES (1u << 30) /* 2,048 tokens x 65,536 wide x f32 = 512 MiB */
#define LIMIT_COMM_INBOX_BYTES                                                                     \
    (256u << 20)                      /* arrived at a rank before it asked; more is not read */
#define COMM_TIMEOUT_MS         10000 /* a silent peer is an error after this */
#define COMM_CONNECT_TIMEOUT_MS 10000

/* runner control link, node to node links */
#define LIMIT_CONTROL_FRAME_BYTES (64u << 20) /* a prompt of 16 M tokens */
#define LIMIT_REQUESTS_QUEUED     256         /* waiting in a head; more is 429 */

/* api */
#define LIMIT_HTTP_CONNECTIONS       4096
#define LIMIT_HTTP_HEADER_BYTES      32768
#define LIMIT_HTTP_HEADERS           100
#define LIMIT_HTTP_BODY_BYTES        (32u << 20)
#define LIMIT_HTTP_URL_BYTES         8192
#define LIMIT_HTTP_WRITE_QUEUE_BYTES (1u << 20) /* a reader this far behind is dropped */
#define HTTP_HEADER_TIMEOUT_MS       10000
#define HTTP_BODY_TIMEOUT_MS         60000
#define HTTP_IDLE_TIMEOUT_MS         75000
#define HTTP_WRITE_TIMEOUT_MS        30000

/* node */
#define LIMIT_PEERS     256
#define LIMIT_INSTANCES 16

#endif
