/* The line of an invite. What is accepted comes back the same when it is written and read. */
#include "mesh/text.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct invite_line line, again;
    struct error err;
    char text[1024], *input = malloc(size + 1);
    if (input == NULL)
        return 0;
    memcpy(input, data, size);
    input[size] = '\0';
    if (invite_line_parse(input, &line, &err) == 0) {
        assert(invite_line_format(&line, text, sizeof(text)) == 0);
        assert(invite_line_parse(text, &again, &err) == 0);
        assert(memcmp(&line, &again, sizeof(line)) == 0);
    }
    free(input);
    return 0;
}
