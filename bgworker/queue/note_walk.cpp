#include "queue/note_walk.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace mq {

Rows NoteWalk::step(Statement& select) {
  ItemPointerData from = from_;
  Rows notes = select.run({PointerGetDatum(&from), Int64GetDatum(most_)});
  if (left_some(notes))
    from_ = *reinterpret_cast<ItemPointer>(DatumGetPointer(notes.get(notes.size() - 1, 1)));
  else
    start_again();
  return notes;
}

void NoteWalk::forget(Statement& remove, const Rows& notes, const std::function<bool(std::size_t)>& is_done) {
  ArrayParam places(TIDOID), writers(XIDOID);
  bool any = false;
  for (std::size_t i = 0; i < notes.size(); ++i) {
    if (!is_done(i)) continue;
    places.add(notes.get(i, 1));
    writers.add(notes.get(i, 2));
    any = true;
  }
  if (any) remove.run({places.datum(), writers.datum()});
}

}  // namespace mq
