-- Purpose: what a person needs to see of the images to decide on: where they are, what the teacher says, whom they leak.
-- Inputs:  asked (image_id), stored_images, stored_labels, stored_duplicates.
-- Grain:   one row per image of asked that the store knows.
-- Parameters: $generation.
with places as (
    select image_id, uri, shard, byte_offset, byte_length, split, label
    from stored_images
    where image_id in (
        select image_id from asked
        union
        select holdout_twin from stored_duplicates where leak and image_id in (select image_id from asked)
    )
),
said as (
    select image_id, generation, label, confidence, top_classes[1:5] as top_classes, top_probs[1:5] as top_probs
    from stored_labels
    where generation = $generation and image_id in (select image_id from asked)
)
select
    p.image_id, p.uri, p.shard, p.byte_offset, p.byte_length, p.split, p.label::INT as trusted,
    s.generation::INT as generation, s.label::INT as label, s.confidence, s.top_classes, s.top_probs,
    t.image_id as twin, t.uri as twin_uri, t.shard as twin_shard, t.byte_offset as twin_offset,
    t.byte_length as twin_length, d.kind, d.distance
from places as p
left join said as s on s.image_id = p.image_id
left join stored_duplicates as d on d.image_id = p.image_id and d.leak
left join places as t on t.image_id = d.holdout_twin
where p.image_id in (select image_id from asked);
