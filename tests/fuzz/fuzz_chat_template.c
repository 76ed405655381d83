/* Input: a template, a NUL, a context (an empty object where there is none). */
#include "text/chat_template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OUTPUT_BYTES = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *source = (const char *)data, *context = "{}";
    size_t source_len = size, context_len = 2;
    const char *nul = size > 0 ? memchr(data, 0, size) : NULL;
    if (nul != NULL) {
        source_len = (size_t)(nul - source);
        context = nul + 1;
        context_len = size - source_len - 1;
    }
    struct chat_template *t = NULL;
    struct error err = {0};
    struct buf out;
    buf_init(&out, OUTPUT_BYTES);
    int rc = chat_template_new(source, source_len, &t, &err);
    if (rc == 0)
        rc = chat_template_render(t, context, context_len, 1753628645, &out, &err);
    /* An internal error is a panic in the engine: caught, but a defect. An error always says why.
     */
    if (rc == E_INTERNAL ||
        (rc != 0 && (out.len > 0 || (rc != E_INVALID && err.message[0] == '\0'))))
        abort();
    chat_template_free(t);
    buf_done(&out);
    return 0;
}
