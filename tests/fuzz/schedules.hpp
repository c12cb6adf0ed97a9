// Fuzz targets of schedules; see targets.hpp.
#pragma once

#include <cstdint>
#include <span>

namespace mq::fuzz {

void cron_line(std::span<const std::uint8_t> given);
void wall_clock(std::span<const std::uint8_t> given);

}  // namespace mq::fuzz
