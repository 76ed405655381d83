/* From degrees to states, with hysteresis, so that a temperature at a bound does not move work to
 * and fro. */
#include "device/device.h"

static const float bounds[DEVICE_THERMAL_COUNT] = {0, 60, 75, 90};

const char *device_thermal_name(enum device_thermal state)
{
    static const char *const names[] = {"normal", "warning", "throttling", "critical"};
    return (unsigned)state < DEVICE_THERMAL_COUNT ? names[state] : "unknown";
}

enum device_thermal device_thermal_step(enum device_thermal state, float celsius)
{
    if (!(celsius > 0 && celsius < 1000)) /* unknown, not a number */
        return state;
    while (state < DEVICE_THERMAL_CRITICAL && celsius >= bounds[state + 1])
        state++;
    while (state > DEVICE_THERMAL_NORMAL && celsius < bounds[state] - DEVICE_THERMAL_HYSTERESIS)
        state--;
    return state;
}
