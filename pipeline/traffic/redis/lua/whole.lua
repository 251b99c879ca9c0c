-- A log that was emptied, or lost its counters, takes nothing until it is opened again.
if redis.call('EXISTS', 'traffic:format', 'traffic:counters') < 2 then return redis.error_reply('LOST the traffic log is not there') end
