-- Run by appview.sh twice a second: repositories that are synchronized, or whose host does not have them, and all;
-- events that were handled; messages that are pending.
SELECT (SELECT count(*) FROM mq_status(ARRAY(SELECT sync FROM repos)) WHERE state IN ('done', 'dead')), (SELECT count(*) FROM repos),
       coalesce((SELECT sum(handled + died) FROM mq_stats WHERE channel_name = 'appview'), 0), (SELECT count(*) FROM mq_msgs);
