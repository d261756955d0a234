-- Purpose: how sure a generation's teacher is of the pool, source by source, so that one of another kind stands out.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per source, the largest share of high entropy first. Nothing in the store names an import: added_at is
--          one moment per chunk of one. So a source is the first folders of the path (of the shard's, where there is one)
--          and the day (UTC) on which its images were added.
-- Parameters: $generation, $depth (folders of the path), $min_confidence, $usual (an entropy in nats).
with placed as (
    select
        image_id, added_at::DATE as day,
        string_split(regexp_replace(coalesce(shard, uri), '/?[^/]*$', ''), '/') as folders
    from stored_images
    where split = 'unlabeled'
)
select
    -- an absolute path begins with a folder without a name
    array_to_string(p.folders[1:$depth + (p.folders[1] = '' and len(p.folders) > 1)::INT], '/') as source,
    p.day, count(*) as images,
    count(*) filter (l.confidence <= $min_confidence::FLOAT) / count(*) as low_confidence,
    count(*) filter (l.entropy > $usual::FLOAT) / count(*) as high_entropy,
    -- whole numbers, because the last digits of a sum of floats depend on the order of its parts
    sum((l.confidence::DOUBLE * 1e9)::BIGINT)::DOUBLE / 1e9 / count(*) as confidence,
    sum((l.entropy::DOUBLE * 1e9)::BIGINT)::DOUBLE / 1e9 / count(*) as entropy
from stored_labels as l
join placed as p on p.image_id = l.image_id
where l.generation = $generation and l.split = 'unlabeled'
group by source, p.day
order by high_entropy desc, images desc, source, p.day;
