-- One database for each service.
CREATE DATABASE catalogue;
CREATE DATABASE owner;
CREATE DATABASE consumer;
