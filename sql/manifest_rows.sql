-- Purpose: the rows of a manifest as a loader reads them. A hard target, and a class that a person gave, is a
--          one-hot soft label, so a reader needs no second rule.
-- Inputs:  selected (image_id, label, source, rank, copies), stored_labels, stored_images, stored_classes.
-- Grain:   one row per selected image, ordered by label, then rank (the writer checks the order and drops rank).
-- Parameters: $generation, $targets ('soft' or 'hard').
select
    s.image_id, i.uri, i.shard, i.byte_offset, i.byte_length, s.source, s.label, c.class_name, l.confidence, s.copies,
    l.generation::INT as generation,
    case when s.source = 'review' or $targets = 'hard' then [s.label] else l.top_classes end::INT[] as top_classes,
    case when s.source = 'review' or $targets = 'hard' then [1.0::FLOAT] else l.top_probs end as top_probs,
    case when s.source = 'review' or $targets = 'hard' then 0.0::FLOAT else l.tail end as tail,
    s.rank
from selected as s
join stored_labels as l on l.image_id = s.image_id and l.generation = $generation
join stored_images as i on i.image_id = s.image_id
left join stored_classes as c on c.label = s.label
order by s.label, s.rank;
