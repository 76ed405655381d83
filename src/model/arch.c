#include "model/arch.h"

#include <stddef.h>
#include <string.h>

static const struct arch arch_table[] = {
    /* Llama 1 to 3.x, Mistral, SmolLM and others that converters write under this name. Their q and
     * k rows are permuted when they are converted, hence rope on neighbouring pairs. */
    {
        .name = "llama",
        .rope = ARCH_ROPE_NORM,
        .activation = ARCH_SILU,
        .qkv_bias = true,
    },
    /* Gemma 3, text part. Converters fold the "1 +" of its norms into the weights. */
    {
        .name = "gemma3",
        .rope = ARCH_ROPE_NEOX,
        .activation = ARCH_GELU_TANH,
        .qk_norm = true,
        .post_norm = true,
        .embd_scale = true,
        .window_pattern = 6,
        .rope_base_local = 10000.0f,
        .embd_attn_scale_layers = 62,
    },
};

const struct arch *arch_at(uint32_t index)
{
    return index < sizeof(arch_table) / sizeof(arch_table[0]) ? &arch_table[index] : NULL;
}

const struct arch *arch_find(const char *name, uint64_t name_len)
{
    const struct arch *arch;
    for (uint32_t i = 0; (arch = arch_at(i)) != NULL; i++)
        if (strlen(arch->name) == name_len && memcmp(arch->name, name, (size_t)name_len) == 0)
            return arch;
    return NULL;
}
