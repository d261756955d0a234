-- Purpose: the candidates without repeats: of those in one group of near-duplicates one stays, and none that repeats a
--          labeled image: one that a person gave its class, or accepted in it, before the most confident, and of equals
--          the lowest image_id.
-- Inputs:  repeating (all candidates), accepted, stored_duplicates.
-- Grain:   one row per image.
with repeats as (
    select image_id
    from (
        select
            r.image_id, d.labeled_twin,
            row_number() over (
                partition by d.group_id, d.labeled_twin
                order by a.label is not null desc, r.confidence desc, r.image_id
            ) as nth
        from repeating as r
        join stored_duplicates as d on d.image_id = r.image_id
        left join accepted as a on a.image_id = r.image_id and a.label = r.label
    )
    where labeled_twin or nth > 1
)
select * from repeating where image_id not in (select image_id from repeats);
