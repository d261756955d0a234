-- Purpose: rows whose image a person has rejected.
-- Inputs:  rows, decisions.
-- Grain:   one row per such row; none in a sound manifest.
select r.image_id, r.uri, r.label
from rows as r
join decisions as d on d.image_id = r.image_id
where d.decision = 'reject'
order by r.image_id;
