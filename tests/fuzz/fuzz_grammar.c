/* Grammars by strangers: the first byte says the kind and how tokens are chosen, the rest is the
 * text. What compiles is followed for some tokens, which must all be taken. */
#include "text/grammar.h"

#include <assert.h>
#include <stdlib.h>

#include "text/tiny_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TOKENS = 24, MASK_BYTES = 64 };

static const struct grammar_vocab *get_vocab(void)
{
    static struct grammar_vocab *vocab;
    struct tiny tiny;
    struct tokenizer *t = NULL;
    if (vocab != NULL)
        return vocab;
    tiny_bpe(&tiny, "gpt-2");
    tiny_finish(&tiny);
    if (tiny_open(&tiny, &t, NULL) != 0 || grammar_vocab_new(t, &vocab, NULL) != 0)
        abort();
    tokenizer_free(t);
    tiny_done(&tiny);
    return vocab;
}

/* The n-th allowed token, counted round and round; -1: none. */
static token_id choose(const uint8_t *mask, uint32_t n)
{
    token_id allowed[8 * MASK_BYTES];
    uint32_t n_allowed = 0;
    for (token_id id = 0; id < 8 * MASK_BYTES; id++)
        if (mask[id / 8] >> id % 8 & 1)
            allowed[n_allowed++] = id;
    return n_allowed > 0 ? allowed[n % n_allowed] : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct grammar *g = NULL;
    uint8_t mask[MASK_BYTES];
    bool is_over = false;
    if (size == 0 || grammar_compile(get_vocab(), (enum grammar_kind)(data[0] % 4),
                                     (const char *)data + 1, size - 1, &g, NULL) != 0)
        return 0;
    for (uint32_t i = 0; i < TOKENS; i++) {
        if (grammar_mask(g, mask, sizeof(mask), &is_over, NULL) != 0 || is_over)
            break;
        token_id id = choose(mask, data[0] / 4u + i * 7);
        assert(id >= 0 && id < TINY_BPE_N);
        if (id == TINY_IM_END)
            break;
        if (grammar_accept(g, id, NULL) != 0)
            break;
    }
    grammar_may_end(g);
    grammar_free(g);
    return 0;
}
