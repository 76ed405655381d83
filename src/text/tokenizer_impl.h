/* What a tokenizer is made of: shared by tokenizer.c (loading, questions), encode.c and
 * detokenizer.c, by nobody else. */
#ifndef SHOAL_TEXT_TOKENIZER_IMPL_H
#define SHOAL_TEXT_TOKENIZER_IMPL_H

#include "text/bpe.h"
#include "text/special.h"
#include "text/spm.h"
#include "text/vocab.h"

enum { END_IDS_MAX = 32 };

struct tokenizer {
    enum vocab_kind kind;
    struct vocab vocab;
    struct special_set special;
    struct bpe bpe; /* VOCAB_BPE */
    struct spm spm; /* VOCAB_SPM */
    token_id bos, eos, unknown;
    bool adds_bos;
    token_id end_ids[END_IDS_MAX]; /* ascending */
    size_t n_end_ids;
};

#endif
