/*
 * What ggml's Vulkan back end uses of VK_EXT_layer_settings, for Vulkan headers before 1.3.272 (Debian 12 has 1.3.239), which lack it.
 * scripts/ggml.sh has the compiler read this file first where they do. Layout and number are those of the extension.
 */
#pragma once
#include <cstdint>
#include <vector>
#include <vulkan/vulkan_core.h>

namespace vk {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char *pLayerName;
    const char *pSettingName;
    LayerSettingTypeEXT type;
    uint32_t valueCount;
    const void *pValues;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> &settings)
        : settingCount(static_cast<uint32_t>(settings.size())), pSettings(settings.data()) {}
    VkStructureType sType = static_cast<VkStructureType>(1000496000);
    const void *pNext = nullptr;
    uint32_t settingCount;
    const LayerSettingEXT *pSettings;
};

} // namespace vk
