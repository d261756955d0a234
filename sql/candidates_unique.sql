-- Purpose: the candidates without repeats: of those in one group of near-duplicates the most confident stays, the lowest
--          image_id of equals, and none that repeats a labeled image.
-- Inputs:  repeating (all candidates), stored_duplicates.
-- Grain:   one row per image.
with repeats as (
    select image_id
    from (
        select
            r.image_id, d.labeled_twin,
            row_number() over (
                partition by d.group_id, d.labeled_twin order by r.confidence desc, r.image_id
            ) as nth
        from repeating as r
        join stored_duplicates as d on d.image_id = r.image_id
    )
    where labeled_twin or nth > 1
)
select * from repeating where image_id not in (select image_id from repeats);
