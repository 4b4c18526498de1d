-- Run once, when a data directory is made. The passwords are for machines whose servers listen on loopback only.
ALTER USER 'root'@'localhost' IDENTIFIED BY 'lockstep-local';
CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY 'lockstep-local';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
CREATE USER IF NOT EXISTS 'lockstep'@'%' IDENTIFIED BY 'lockstep-local';
GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT /*M!100509 , SLAVE MONITOR */ ON *.* TO 'lockstep'@'%';
