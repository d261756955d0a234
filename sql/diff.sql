-- Purpose: what became of each image between two manifests, counted by class. An image whose label differs is
--          relabeled, whatever its copies; one whose copies alone differ is copies_changed.
-- Inputs:  before, after (image_id, label, copies; no image twice in either).
-- Grain:   one row per label that occurs in either, ordered by label. A removed image counts in the class that it was
--          in, every other one in the class that it is in now.
select
    coalesce(a.label, b.label) as label,
    count(*) filter (b.image_id is null) as added,
    count(*) filter (a.image_id is null) as removed,
    count(*) filter (a.label <> b.label) as relabeled,
    count(*) filter (a.label = b.label and a.copies <> b.copies) as copies_changed,
    count(*) filter (a.label = b.label and a.copies = b.copies) as same
from before as b
full join after as a on a.image_id = b.image_id
group by 1
order by 1;
