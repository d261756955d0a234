-- Purpose: the rows of a manifest as a loader reads them. A hard target, and a class that a person gave, is a
--          one-hot soft label, so a reader needs no second rule. The confidence that makes a target hard with 'auto' is
--          one in the teacher's class: where the policy selected the image for another class, its target stays soft.
-- Inputs:  selected (image_id, label, score, weight, copies), decisions, stored_labels, stored_images, stored_classes.
-- Grain:   one row per selected image, ordered by label, then score, then image_id (the writer checks the order and
--          drops the score).
-- Parameters: $generation, $targets ('soft', 'hard' or 'auto'), $hard_from.
select
    s.image_id, i.uri, i.shard, i.byte_offset, i.byte_length,
    case when d.decision = 'relabel' then 'review' else 'pseudo' end as source,
    s.label, c.class_name, l.confidence, s.copies, s.weight,
    l.generation::INT as generation,
    case when hard then [s.label] else l.top_classes end::INT[] as top_classes,
    case when hard then [1.0::FLOAT] else l.top_probs end as top_probs,
    case when hard then 0.0::FLOAT else l.tail end as tail,
    s.score
from selected as s
join stored_labels as l on l.image_id = s.image_id and l.generation = $generation
join stored_images as i on i.image_id = s.image_id
left join stored_classes as c on c.label = s.label
left join decisions as d on d.image_id = s.image_id
cross join lateral (
    select
        d.decision is not distinct from 'relabel' or $targets = 'hard'
        or $targets = 'auto' and l.confidence >= $hard_from::FLOAT and s.label = l.label as hard
)
order by s.label, s.score desc, s.image_id;
