-- Purpose: soft labels that are none: classes that the store does not have, probabilities that are not between 0 and 1 or
--          sum to something else. Imports may be off by 1e-3, and rounding moves a probability by a 64th at most.
-- Inputs:  stored_labels, stored_classes.
-- Grain:   one row per such label; none in a sound store.
-- Mend:    bring labels back as they were before
select l.image_id, l.generation, l.label, l.confidence, l.margin, l.entropy, l.top_classes, l.top_probs, l.tail
from stored_labels as l, (select count(*) as classes from stored_classes) as c
where coalesce(
    l.image_id is null or l.generation < 0
    or l.label < 0 or l.label >= c.classes
    or list_min(l.top_classes) < 0 or list_max(l.top_classes) >= c.classes
    or len(l.top_classes) <> len(l.top_probs)
    or not (l.confidence between 0 and 1 + 1e-3 and l.margin between 0 and 1 + 1e-3)
    or not (l.entropy between -1e-3 and 1e-3 + ln(c.classes))
    or not (list_min(l.top_probs) >= 0 and l.tail >= 0)
    or not list_sum(l.top_probs)::DOUBLE + l.tail between 1 - 1e-3 - 1 / 64 and 1 + 1e-3 + 1 / 64,
    true
)
order by l.generation, l.image_id;
