-- Purpose: rows of a user's policy that it cannot have from the candidates, and images that it returned twice.
-- Inputs:  policy_rows (the policy's answer, kept in a file), candidates.
-- Grain:   one row.
select
    (
        select count(*)
        from policy_rows as p
        anti join candidates as c on c.image_id = p.image_id and c.confidence = p.confidence
    ) as strays,
    (select count(*) from (select image_id from policy_rows group by image_id having count(*) > 1)) as repeated;
