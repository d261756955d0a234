-- Purpose: labeled images to whose class a model objects that was trained without them.
-- Inputs:  label_suspects (image_id, label, chance, suggested), stored_labels, kept, settled.
-- Grain:   one row per image, the highest value first; see worklist.sql for the value.
-- Parameters: $generation, $label (only this class; null for all), $least (no lower value), $limit.
select
    s.image_id, s.label::INT as label, 'label' as reason, 2::DOUBLE * s.chance as value, format('rather {}', s.suggested) as detail,
    l.confidence, k.copies
from label_suspects as s
left join stored_labels as l on l.image_id = s.image_id and l.generation = $generation
left join kept as k on k.image_id = s.image_id
where s.image_id not in (select image_id from settled)
  and 2::DOUBLE * s.chance >= $least and ($label::INT is null or s.label = $label)
order by value desc, s.image_id
limit $limit;
