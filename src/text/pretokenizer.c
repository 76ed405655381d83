#include "text/pretokenizer.h"

#include "base/limits.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* White space as Unicode defines it; PCRE2's own \s also has U+180E. WS goes inside a class. */
#define WS        "\\t-\\r\\x{85}\\p{Z}"
#define SPACE     "[" WS "]"
#define NO_SPACE  "[^" WS "]"
#define SPACE_END "|" SPACE "+(?!" NO_SPACE ")|" SPACE "+"

#define DIGIT "\\p{N}"
/* GPT-2's, which Hugging Face's ByteLevel applies. */
#define GPT2        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+" SPACE_END
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
/* GPT-4's (cl100k) and those made from it: letters with one other character before them, digits in
 * groups, punctuation with line ends. */
#define CL100K(digits, lines)                                                                      \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS                                \
                "\\p{L}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]" lines SPACE_END
/* GPT-4o's (o200k): a word is capitals and then small letters. */
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define O200K(suffix, digits)                                                                      \
    "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+" suffix "|[^\\r\\n\\p{L}\\p{N}]?[" UPPER       \
    "]+[" LOWER "]*" suffix "|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" SPACE                \
    "*[\\r\\n]+" SPACE_END
#define FALCON_MARKS "[\\p{P}\\$\\+<=>\\^~\\|"
#define DEEPSEEK3                                                                                  \
    "[!\"#$%&'()*+,\\-./"                                                                          \
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "             \
    "?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACE "*[\\r\\n]+" SPACE_END

enum { MAX_STAGES = 6 };
enum { NFC = 1, IGNORE_MERGES = 2, ADD_BOS = 4 };

struct rule {
    const char *names; /* each with a space before and after it */
    unsigned flags;
    const char *patterns[MAX_STAGES]; /* NULL after the last */
};

/* Sources: the pre_tokenizer and normalizer of each model's published tokenizer.json; names as
 * llama.cpp's converter writes them. */
static const struct rule rules[] = {
    {" gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert jais "
     "exaone4 trillion granite-docling ",
     0,
     {GPT2}},
    {" mpt olmo ", NFC, {GPT2}},
    {" smollm starcoder refact codeshell exaone minerva-7b mellum2 ", 0, {DIGIT, GPT2}},
    {" command-r ", NFC, {DIGIT, GPT2}},
    {" llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 ",
     IGNORE_MERGES | ADD_BOS,
     {CL100K("\\p{N}{1,3}", "+")}},
    {" dbrx smaug-bpe chatglm-bpe ", 0, {CL100K("\\p{N}{1,3}", "+")}},
    {" glm4 ", IGNORE_MERGES, {CL100K("\\p{N}{1,3}", "+")}},
    {" qwen2 deepseek-r1-qwen megrez ", NFC, {CL100K("\\p{N}", "+")}},
    {" stablelm2 hunyuan solar-open grok-2 ", 0, {CL100K("\\p{N}", "+")}},
    {" qwen35 ",
     NFC,
     {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS
                  "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]+" SPACE_END}},
    {" gpt-4o llama4 kanana2 minimax-m2 ", 0, {O200K(CONTRACTION "?", "\\p{N}{1,3}")}},
    {" tekken ", IGNORE_MERGES | ADD_BOS, {O200K("", "\\p{N}")}},
    {" deepseek-v3 hunyuan-dense ",
     0,
     {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+", DEEPSEEK3}},
    {" deepseek-coder ",
     0,
     {"[\\r\\n]", SPACE "?\\p{L}+", SPACE "?\\p{P}+",
      "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+", DIGIT}},
    {" falcon ", 0, {FALCON_MARKS "`]+", GPT2, "[0-9][0-9][0-9]"}},
    /* What llama.cpp does when a file names nothing better; its converter was first made for
       Falcon. */
    {" default ", 0, {FALCON_MARKS "]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

struct pretokenizer {
    const struct rule *rule;
    size_t n_stages;
    pcre2_code *stages[MAX_STAGES];
    pcre2_match_context *context; /* limits; only read while matching */
};

static const struct rule *find_rule(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        const char *at = rules[i].names + 1;
        while (*at != '\0') {
            size_t n = strcspn(at, " ");
            if (n == len && memcmp(at, name, len) == 0)
                return &rules[i];
            at += n + 1;
        }
    }
    return NULL;
}

int pretokenizer_new(const char *name, size_t len, struct pretokenizer **ret_pretokenizer,
                     struct error *err)
{
    const struct rule *rule = find_rule(name, len);
    if (rule == NULL)
        return error_set(err, E_UNSUPPORTED,
                         "tokenizer.ggml.pre is \"%.*s\", a pre-tokenizer that is not known here",
                         len > 64 ? 64 : (int)len, name);
    struct pretokenizer *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "no memory for a pre-tokenizer");
    p->rule = rule;
    p->context = pcre2_match_context_create(NULL);
    if (p->context == NULL) {
        pretokenizer_free(p);
        return error_set(err, E_NOMEM, "no memory for a pre-tokenizer");
    }
    pcre2_set_match_limit(p->context, 4 * LIMIT_PROMPT_BYTES); /* linear in the text, with room */
    for (; p->n_stages < MAX_STAGES && rule->patterns[p->n_stages] != NULL; p->n_stages++) {
        int code;
        PCRE2_SIZE at;
        pcre2_code *stage =
            pcre2_compile((PCRE2_SPTR)rule->patterns[p->n_stages], PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
        if (stage == NULL) {
            PCRE2_UCHAR message[128] = {0};
            pcre2_get_error_message(code, message, sizeof(message));
            pretokenizer_free(p);
            return error_set(err, code == PCRE2_ERROR_HEAP_FAILED ? E_NOMEM : E_INTERNAL,
                             "pre-tokenizer pattern %.*s at %zu: %s", (int)len, name, (size_t)at,
                             (const char *)message);
        }
        pcre2_jit_compile(stage, PCRE2_JIT_COMPLETE); /* without it matching is only slower */
        p->stages[p->n_stages] = stage;
    }
    *ret_pretokenizer = p;
    return 0;
}

void pretokenizer_free(struct pretokenizer *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; i < MAX_STAGES; i++)
        pcre2_code_free(p->stages[i]);
    pcre2_match_context_free(p->context);
    free(p);
}

bool pretokenizer_composes(const struct pretokenizer *p)
{
    return (p->rule->flags & NFC) != 0;
}

bool pretokenizer_ignores_merges(const struct pretokenizer *p)
{
    return (p->rule->flags & IGNORE_MERGES) != 0;
}

bool pretokenizer_adds_bos(const struct pretokenizer *p)
{
    return (p->rule->flags & ADD_BOS) != 0;
}

struct split_call {
    const struct pretokenizer *p;
    pcre2_match_data *match;
    pretokenizer_word_fn word;
    void *arg;
    struct error *err;
};

static int split_stage(const struct split_call *call, size_t stage, const char *text, size_t len)
{
    if (len == 0)
        return 0;
    if (stage == call->p->n_stages)
        return call->word(call->arg, text, len);
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(call->match);
    size_t done = 0, from = 0; /* text[0, done) has been handed on */
    while (from < len) {
        int n = pcre2_match(call->p->stages[stage], (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK,
                            call->match, call->p->context);
        if (n == PCRE2_ERROR_NOMATCH)
            break;
        if (n < 0) {
            PCRE2_UCHAR message[128] = {0};
            pcre2_get_error_message(n, message, sizeof(message));
            return error_set(call->err, n == PCRE2_ERROR_NOMEMORY ? E_NOMEM : E_INTERNAL,
                             "pre-tokenizer stage %zu at byte %zu of %zu: %s", stage, from, len,
                             (const char *)message);
        }
        size_t start = span[0], end = span[1];
        if (end <= start) { /* no pattern above can match nothing */
            return error_set(call->err, E_INTERNAL, "pre-tokenizer stage %zu matched nothing",
                             stage);
        }
        int rc = split_stage(call, stage + 1, text + done, start - done);
        if (rc == 0)
            rc = split_stage(call, stage + 1, text + start, end - start);
        if (rc != 0)
            return rc;
        done = from = end;
    }
    return split_stage(call, stage + 1, text + done, len - done);
}

int pretokenizer_split(const struct pretokenizer *p, const char *text, size_t len,
                       pretokenizer_word_fn word, void *arg, struct error *err)
{
    struct split_call call = {p, pcre2_match_data_create(1, NULL), word, arg, err};
    if (call.match == NULL)
        return error_set(err, E_NOMEM, "no memory to match %zu bytes", len);
    int rc = split_stage(&call, 0, text, len);
    pcre2_match_data_free(call.match);
    return rc;
}
