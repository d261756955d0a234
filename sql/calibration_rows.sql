-- Purpose: the soft labels that a generation's teacher gave to the holdout, with the true class.
-- Inputs:  stored_labels, trusted, stored_classes.
-- Grain:   one row per image, ordered by image_id. `cut` counts the classes outside the soft label, `rank` is the place of
--          the true class in it from 1 on, 0 where it was cut.
-- Parameters: $generation.
select
    l.image_id, l.model, l.label::INT as label, l.label = i.label as is_right, l.confidence, l.top_probs, l.tail,
    (select count(*) from stored_classes) - len(l.top_classes) as cut,
    coalesce(list_position(l.top_classes, i.label), 0)::INT as rank
from stored_labels as l
join trusted as i on i.image_id = l.image_id
-- the split of a label, for good that of its image, lets the parts of the pool be passed over
where l.generation = $generation and l.split = 'holdout' and i.split = 'holdout'
order by l.image_id;
