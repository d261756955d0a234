-- Purpose: images that differ between two manifests in one way, see sql/diff.sql.
-- Inputs:  before, after (image_id, uri, shard, byte_offset, byte_length, label, class_name, confidence, copies).
-- Grain:   one row per image, ordered by class, then image_id.
-- Parameters: $change (added, removed, relabeled or copies_changed), $limit.
with changed as (
    select
        image_id, coalesce(a.label, b.label) as label, b.class_name as class_before, a.class_name as class_after,
        b.copies as copies_before, a.copies as copies_after, coalesce(a.confidence, b.confidence) as confidence,
        coalesce(a.uri, b.uri) as uri, coalesce(a.shard, b.shard) as shard,
        coalesce(a.byte_offset, b.byte_offset) as byte_offset, coalesce(a.byte_length, b.byte_length) as byte_length,
        case
            when b.label is null then 'added'
            when a.label is null then 'removed'
            when a.label <> b.label then 'relabeled'
            when a.copies <> b.copies then 'copies_changed'
        end as change
    from before as b
    full join after as a using (image_id)
)
select * exclude (change, label)
from changed
where change = $change
order by label, image_id
limit $limit;
