#include "store/source.h"

#include "store/files.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

/* What a repository is asked for when people name none: small enough for most, and good. */
static const char *const preferred[] = {"Q4_K_M", "Q4_K_S", "Q4_0", "MXFP4", "Q5_K_M",
                                        "Q6_K",   "Q8_0",   "F16",  "BF16"};

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcasecmp(text + n - m, end) == 0;
}

static bool begins_with(const char *text, const char *begin)
{
    return strncmp(text, begin, strlen(begin)) == 0;
}

/* A name for a file of ours: no folders, nothing hidden, nothing that a shell would mind. */
static int make_name(const char *from, size_t len, char ret[CARD_FILE_BYTES], struct error *err)
{
    bool has_suffix = len >= 5 && strncasecmp(from + len - 5, ".gguf", 5) == 0;
    if (len == 0 || len + 6 > CARD_FILE_BYTES - 16)
        return error_set(err, E_INVALID, "'%.*s' is no name for a file", (int)(len < 64 ? len : 64),
                         from);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)from[i];
        bool is_plain = isalnum(c) || c == '-' || c == '_' || c == '+' || (c == '.' && i > 0);
        ret[i] = is_plain ? (char)c : '_';
    }
    memcpy(ret + len, has_suffix ? "" : ".gguf", has_suffix ? 1 : 6);
    return 0;
}

static int parse_url(const char *text, struct model_source *ret, struct error *err)
{
    ret->kind = SOURCE_URL;
    size_t len = strlen(text);
    if (len >= sizeof(ret->url))
        return error_set(err, E_LIMIT, "the address has over %zu bytes", sizeof(ret->url) - 1);
    memcpy(ret->url, text, len + 1);
    const char *host = strstr(text, "://") + 3, *end = text + strcspn(text, "?#"), *slash = end;
    while (slash > host && slash[-1] != '/')
        slash--;
    if (slash == host || slash == end)
        return error_set(err, E_INVALID, "%.200s: the address names no file", text);
    int rc = make_name(slash, (size_t)(end - slash), ret->name, err);
    if (rc == 0)
        source_quantization_of(ret->name, ret->quantization);
    return rc;
}

static int parse_path(const char *text, struct model_source *ret, struct error *err)
{
    ret->kind = SOURCE_PATH;
    if (strlen(text) >= sizeof(ret->path))
        return error_set(err, E_LIMIT, "the path has over %zu bytes", sizeof(ret->path) - 1);
    memcpy(ret->path, text, strlen(text) + 1);
    const char *name = files_base_name(text);
    source_quantization_of(name, ret->quantization);
    return make_name(name, strlen(name), ret->name, err);
}

static bool is_repo_char(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '_' || c == '.';
}

/* OWNER/REPO, then nothing, :QUANTIZATION, or (after hf:) /FILE. */
static int parse_repo(const char *text, bool may_have_file, struct model_source *ret,
                      struct error *err)
{
    size_t n_slashes = 0, n = 0;
    ret->kind = SOURCE_REPO;
    while (text[n] != '\0' &&
           (is_repo_char(text[n]) || (text[n] == '/' && n_slashes == 0 && n > 0)))
        n_slashes += text[n++] == '/';
    bool is_repo = n_slashes == 1 && text[n - 1] != '/' && n < sizeof(ret->repo) &&
                   strstr(text, "..") == NULL && text[0] != '.';
    const char *rest = text + n;
    if (is_repo)
        snprintf(ret->repo, sizeof(ret->repo), "%.*s", (int)n, text);
    if (is_repo && rest[0] == '\0')
        return 0;
    if (is_repo && rest[0] == ':' && rest[1] != '\0' && strlen(rest + 1) < QUANTIZATION_BYTES) {
        snprintf(ret->quantization, sizeof(ret->quantization), "%s", rest + 1);
        return 0;
    }
    if (is_repo && may_have_file && rest[0] == '/' && ends_with(rest, ".gguf") &&
        strlen(rest + 1) < sizeof(ret->file)) {
        snprintf(ret->file, sizeof(ret->file), "%s", rest + 1);
        source_quantization_of(ret->file, ret->quantization);
        return 0;
    }
    return error_set(err, E_INVALID,
                     "'%.200s' must be OWNER/REPO, OWNER/REPO:QUANTIZATION or "
                     "hf:OWNER/REPO/FILE.gguf",
                     text);
}

static int take_card(const struct card *k, const char *quantization, struct model_source *ret,
                     struct error *err)
{
    struct card_file f;
    int rc = card_find_file(k, quantization, &f, err);
    if (rc != 0)
        return rc;
    ret->kind = SOURCE_URL;
    if (f.url[0] != '\0')
        rc = parse_url(f.url, ret, err);
    else
        rc = parse_repo(f.repo, false, ret, err);
    if (rc != 0)
        return error_wrap(err, rc, "the card of model %s", k->name);
    snprintf(ret->card, sizeof(ret->card), "%s", k->name);
    memcpy(ret->quantization, f.quantization, sizeof(ret->quantization));
    memcpy(ret->file, f.file, sizeof(ret->file));
    ret->size_bytes = f.size_bytes;
    ret->has_sha256 = f.has_sha256;
    memcpy(ret->sha256, f.sha256, sizeof(ret->sha256));
    const char *name = files_base_name(f.file);
    return make_name(name, strlen(name), ret->name, err);
}

/* A known model in a quantization that it does not come in: says which ones there are. Returns 0
 * when the text is no such thing. */
static int refuse_quantization(const struct cards *cards, const char *text, struct error *err)
{
    for (uint32_t i = 0; i < cards_count(cards); i++) {
        const struct card *k = cards_at(cards, i);
        size_t n = strlen(k->name), len = 0;
        struct card_file f;
        char list[256] = "";
        if (strncasecmp(text, k->name, n) != 0 || (text[n] != ':' && text[n] != '-'))
            continue;
        for (uint32_t q = 0; card_file_at(k, q, &f) && len < sizeof(list); q++)
            len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", q > 0 ? ", " : "",
                                    f.quantization);
        return error_set(err, E_NOTFOUND, "%s does not come as '%.64s', but as %s", k->name,
                         text + n + 1, list);
    }
    return 0;
}

int source_parse(const struct cards *cards, const char *text, struct model_source *ret,
                 struct error *err)
{
    char quantization[QUANTIZATION_BYTES];
    struct stat info;
    memset(ret, 0, sizeof(*ret));
    if (text[0] == '\0')
        return error_set(err, E_INVALID, "the model has no name");
    if (begins_with(text, "http://") || begins_with(text, "https://"))
        return parse_url(text, ret, err);
    if (begins_with(text, "hf:"))
        return parse_repo(text + 3, true, ret, err);
    bool is_path = text[0] == '/' || text[0] == '.' || ends_with(text, ".gguf");
    if (is_path && stat(text, &info) == 0)
        return parse_path(text, ret, err);
    const struct card *k = cards_find(cards, text, quantization);
    if (k != NULL)
        return take_card(k, quantization, ret, err);
    k = is_path ? cards_find_file(cards, text, quantization) : NULL;
    if (k != NULL) /* the name of a file that a card has */
        return take_card(k, quantization, ret, err);
    if (is_path)
        return error_set(err, E_NOTFOUND, "there is no file %.200s", text);
    if (strchr(text, '/') != NULL)
        return parse_repo(text, false, ret, err);
    int rc = refuse_quantization(cards, text, err);
    if (rc != 0)
        return rc;
    const char *near = cards_suggest(cards, text);
    return error_set(err, E_NOTFOUND,
                     "no model is called '%.100s'%s%s%s; `shoal ls --all` lists those that can be "
                     "fetched by name",
                     text, near != NULL ? " (is it '" : "", near != NULL ? near : "",
                     near != NULL ? "'?)" : "");
}

/* ---- repositories ---- */

static bool append_escaped(char *ret, size_t size, const char *text)
{
    size_t n = strlen(ret);
    for (; *text != '\0'; text++) {
        bool is_plain = is_repo_char(*text) || *text == '/';
        int added = snprintf(ret + n, size - n, is_plain ? "%c" : "%%%02X", (unsigned char)*text);
        if (added < 0 || (size_t)added >= size - n)
            return false;
        n += (size_t)added;
    }
    return true;
}

int source_list_url(const struct model_source *s, const char *hub, char ret_url[4096],
                    struct error *err)
{
    int n = snprintf(ret_url, 4096, "%s/api/models/%s/tree/main?recursive=true", hub, s->repo);
    return n > 0 && n < 4096 ? 0 : error_set(err, E_LIMIT, "the hub's address is too long");
}

static int set_file(struct model_source *s, const char *hub, const char *file, struct error *err)
{
    int n = snprintf(s->url, sizeof(s->url), "%s/%s/resolve/main/", hub, s->repo);
    if (n < 0 || (size_t)n >= sizeof(s->url) || strlen(file) >= sizeof(s->file) ||
        !append_escaped(s->url, sizeof(s->url), file))
        return error_set(err, E_LIMIT, "the address of %.200s is too long", file);
    if (file != s->file)
        snprintf(s->file, sizeof(s->file), "%s", file);
    if (s->quantization[0] == '\0')
        source_quantization_of(s->file, s->quantization);
    const char *name = files_base_name(s->file);
    return make_name(name, strlen(name), s->name, err);
}

int source_guess(struct model_source *s, const char *hub, struct error *err)
{
    if (s->file[0] == '\0')
        return error_set(err, E_NOTFOUND, "%s: say which file: hf:%s/FILE.gguf", s->repo, s->repo);
    return set_file(s, hub, s->file, err);
}

/* "-00001-of-00003.gguf" */
static bool is_piece(const char *path)
{
    size_t n = strlen(path);
    return n > 20 && strncmp(path + n - 14, "-of-", 4) == 0 && ends_with(path, ".gguf");
}

/* Whether a file's name has this quantization as a word. */
static bool has_word(const char *path, const char *word)
{
    const char *name = files_base_name(path);
    size_t n = strlen(word);
    for (const char *p = name; *p != '\0'; p++)
        if ((p == name || !isalnum((unsigned char)p[-1])) && strncasecmp(p, word, n) == 0 &&
            !isalnum((unsigned char)p[n]) && p[n] != '_' &&
            /* UD-Q4_K_XL is not Q4_K_XL */
            !(p >= name + 3 && strncasecmp(p - 3, "UD-", 3) == 0 &&
              strncasecmp(word, "UD", 2) != 0))
            return true;
    return false;
}

void source_quantization_of(const char *file, char ret[QUANTIZATION_BYTES])
{
    static const char *const begins[] = {"Q", "IQ", "F16", "BF16", "F32", "MXFP4", "TQ"};
    const char *name = files_base_name(file);
    size_t n = strlen(name);
    ret[0] = '\0';
    if (ends_with(name, ".gguf"))
        n -= 5;
    size_t at = n;
    while (at > 0 && (isalnum((unsigned char)name[at - 1]) || name[at - 1] == '_'))
        at--;
    if (n - at >= QUANTIZATION_BYTES || n - at < 2)
        return;
    for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]); i++) {
        size_t m = strlen(begins[i]);
        bool fits = m > 2 ? n - at == m : isdigit((unsigned char)name[at + m]) != 0;
        if (fits && strncasecmp(name + at, begins[i], m) == 0) {
            if (at >= 3 && strncasecmp(name + at - 3, "UD-", 3) == 0 &&
                n - at + 3 < QUANTIZATION_BYTES)
                at -= 3;
            snprintf(ret, QUANTIZATION_BYTES, "%.*s", (int)(n - at), name + at);
            for (char *p = ret; *p != '\0'; p++)
                *p = (char)toupper((unsigned char)*p);
            return;
        }
    }
}

struct choice {
    const json_t *best;
    size_t rank;      /* of the best: lower is better */
    uint32_t n_files; /* GGUF files in one piece */
    bool is_in_pieces;
    struct buf names;
};

static void consider(struct choice *c, const struct model_source *s, const json_t *item)
{
    enum { N_PREFERRED = sizeof(preferred) / sizeof(preferred[0]) };
    const char *path = json_string_value(json_object_get(item, "path"));
    size_t rank = SIZE_MAX;
    /* Image encoders and calibration data are published beside models. */
    if (path == NULL || !ends_with(path, ".gguf") || strcasestr(path, "mmproj") != NULL ||
        strcasestr(path, "imatrix") != NULL)
        return;
    if (s->file[0] != '\0' && strcasecmp(path, s->file) == 0)
        rank = 0;
    else if (s->quantization[0] != '\0' && has_word(path, s->quantization))
        rank = 1;
    for (size_t i = 0; i < N_PREFERRED && s->file[0] == '\0' && s->quantization[0] == '\0'; i++)
        if (rank == SIZE_MAX && has_word(path, preferred[i]))
            rank = 2 + i;
    if (is_piece(path)) {
        c->is_in_pieces |= rank < 2;
        return;
    }
    if (rank == SIZE_MAX && s->file[0] == '\0' && s->quantization[0] == '\0')
        rank = 2 + N_PREFERRED; /* better than nothing, when it is the only one */
    if (c->names.len < 300)
        buf_printf(&c->names, "%s%.100s", c->n_files > 0 ? ", " : "", path);
    c->n_files++;
    if (rank < c->rank) {
        c->rank = rank;
        c->best = item;
    }
}

static void take_facts(struct model_source *s, const json_t *item)
{
    const json_t *lfs = json_object_get(item, "lfs");
    const char *oid = json_string_value(json_object_get(lfs, "oid"));
    json_int_t size = json_integer_value(json_object_get(lfs, "size"));
    if (size <= 0)
        size = json_integer_value(json_object_get(item, "size"));
    if (s->size_bytes == 0 && size > 0)
        s->size_bytes = (uint64_t)size;
    if (!s->has_sha256 && oid != NULL)
        s->has_sha256 = files_unhex(oid, s->sha256, sizeof(s->sha256)) == 0;
}

int source_choose(struct model_source *s, const char *hub, const char *json, size_t len,
                  struct error *err)
{
    json_t *list = NULL;
    const json_t *item;
    size_t i;
    int rc = json_parse(json, len, &list, err);
    if (rc == 0 && !json_is_array(list))
        rc = error_set(err, E_FORMAT, "not a list");
    if (rc != 0) {
        json_decref(list);
        return error_wrap(err, E_FORMAT, "the list of files of %s", s->repo);
    }
    struct choice c = {.rank = SIZE_MAX};
    buf_init(&c.names, 1024);
    json_array_foreach(list, i, item) consider(&c, s, item);
    if (c.best != NULL) {
        take_facts(s, c.best);
        rc = set_file(s, hub, json_string_value(json_object_get(c.best, "path")), err);
    } else if (c.is_in_pieces) {
        rc = error_set(err, E_UNSUPPORTED,
                       "%s has %s in several pieces, and shoal reads models of one file: join them "
                       "(llama-gguf-split --merge), or take another quantization: %s",
                       s->repo, s->quantization[0] != '\0' ? s->quantization : "this model",
                       c.names.len > 0 ? buf_str(&c.names) : "there is none");
    } else {
        rc = error_set(err, E_NOTFOUND, "%s has no %s; it has %s", s->repo,
                       s->file[0] != '\0'           ? s->file
                       : s->quantization[0] != '\0' ? s->quantization
                                                    : "GGUF file",
                       c.names.len > 0 ? buf_str(&c.names) : "none");
    }
    buf_done(&c.names);
    json_decref(list);
    return rc;
}
