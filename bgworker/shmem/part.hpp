// Part: the parts of a process that may fail each for itself. The worker's loop and the launcher
// name them to shared::note_fails(), and mq_health() shows them.
#pragma once

namespace mq {

// These may fail for other reasons than a handler's: the parts of a worker's loop; the worker
// itself, which ends with an error (kProcess); and the launcher.
enum class Part { kBatches, kLeasedCalls, kSweep, kCharges, kSchedules, kProcess, kLauncher };

}  // namespace mq
