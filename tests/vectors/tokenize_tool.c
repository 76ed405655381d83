/*
 * Tokenizes strings for test_tokenizers.py. Reads records from stdin: length (u32), flags (u8:
 * those of tokenizer_encode), bytes. Writes for each: number of tokens (u32), the token ids (i32
 * each), length of the text they decode to (u32), that text. With --time it tokenizes and reports
 * bytes and seconds of processor time of the encoding alone on stderr. Integers are little-endian.
 */
#include "base/buf.h"
#include "base/limits.h"
#include "model/gguf.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct totals {
    uint64_t n_bytes;
    clock_t ticks; /* processor time, so that other programs do not count */
};

static int read_exactly(void *data, size_t n)
{
    return fread(data, 1, n, stdin) == n ? 0 : -1;
}

static void write_u32(uint32_t v)
{
    fwrite(&v, sizeof(v), 1, stdout);
}

static int write_decoded(const struct tokenizer *t, const struct token_list *ids)
{
    struct detokenizer d;
    struct buf text;
    buf_init(&text, 16u * LIMIT_PROMPT_BYTES);
    detokenizer_init(&d, t, true, true);
    for (size_t i = 0; i < ids->n; i++)
        detokenizer_push(&d, ids->ids[i], &text);
    int rc = detokenizer_finish(&d, &text);
    write_u32((uint32_t)text.len);
    fwrite(buf_str(&text), 1, text.len, stdout);
    buf_done(&text);
    return rc;
}

/* One record. Returns 1 at the end of the input. */
static int do_record(const struct tokenizer *t, struct totals *totals, struct error *err)
{
    uint32_t len;
    uint8_t flags;
    struct token_list ids;
    if (read_exactly(&len, sizeof(len)) != 0)
        return 1;
    char *text = malloc((size_t)len + 1);
    if (text == NULL || read_exactly(&flags, 1) != 0 || read_exactly(text, len) != 0) {
        free(text);
        return error_set(err, E_FORMAT, "the input ends within a record");
    }
    token_list_init(&ids);
    clock_t before = clock();
    int rc = tokenizer_encode(t, text, len, flags, &ids, err);
    totals->ticks += clock() - before;
    totals->n_bytes += len;
    if (rc == 0) {
        write_u32((uint32_t)ids.n);
        fwrite(ids.ids, sizeof(ids.ids[0]), ids.n, stdout);
        rc = write_decoded(t, &ids);
    }
    token_list_done(&ids);
    free(text);
    return rc;
}

int main(int argc, char **argv)
{
    struct gguf_file *file = NULL;
    struct tokenizer *t = NULL;
    struct error err = {0};
    struct totals totals = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: %s model.gguf [--time] <records >ids\n", argv[0]);
        return 64;
    }
    clock_t before = clock();
    int rc = gguf_file_open(argv[1], &file, &err);
    if (rc == 0)
        rc = tokenizer_new(file, &t, &err);
    clock_t load_ticks = clock() - before;
    while (rc == 0)
        rc = do_record(t, &totals, &err);
    if (rc == 1 && argc > 2 && strcmp(argv[2], "--time") == 0)
        fprintf(stderr, "loaded in %.3f s, %llu bytes in %.3f s\n",
                (double)load_ticks / CLOCKS_PER_SEC, (unsigned long long)totals.n_bytes,
                (double)totals.ticks / CLOCKS_PER_SEC);
    tokenizer_free(t);
    gguf_file_close(file);
    if (rc != 1)
        fprintf(stderr, "%s: %s\n", argv[1], err.message);
    return rc == 1 ? 0 : error_exit_code(rc);
}
